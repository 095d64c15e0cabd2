// Texts to scores, as kdc's engine computes them for one row. Knows nothing of the page, so other pages and Node can import it.
import { env, InferenceSession, Tensor } from "./ort.js";
import { Tokenizer } from "./tokenizers.js";

const IDEOGRAPH =
  /[\u3400-\u4DBF\u4E00-\u9FFF\uF900-\uFAFF\u{20000}-\u{2A6DF}\u{2A700}-\u{2B81F}\u{2B920}-\u{2CEAF}\u{2F800}-\u{2FA1F}]/gu;

/** BertNormalizer of Hugging Face's `tokenizers`. The JavaScript library's own differs for a Σ that ends a word, U+0085
 *  and ideographs past U+FFFF. */
const bertNormalizer = (settings) => (text) => {
  if (settings.clean_text) {
    text = text.replace(/(?![\t\n\r])[\0\uFFFD\p{Cc}\p{Cf}\p{Co}]/gu, "").replace(/\p{White_Space}/gu, " ");
  }
  if (settings.handle_chinese_chars) text = text.replace(IDEOGRAPH, " $& ");
  if (settings.strip_accents ?? settings.lowercase) text = text.normalize("NFD").replace(/\p{Mn}/gu, "");
  return settings.lowercase ? Array.from(text, (character) => character.toLowerCase()).join("") : text;
};

/** Cut one or two lists of tokens to `room` in all, the longer one first. */
function cut(texts, room, side) {
  const lengths = texts.map((tokens) => tokens.length);
  const [shorter, longer] = texts.length > 1 ? lengths.toSorted((one, other) => one - other) : [0, lengths[0]];
  let least = shorter, most = Math.min(longer, Math.max(shorter, room - shorter));
  if (least + most > room) [least, most] = [Math.floor(room / 2), room - Math.floor(room / 2)];
  const isFirstShorter = texts.length > 1 && lengths[0] <= lengths[1];
  return texts.map((tokens, place) => {
    const count = isFirstShorter === (place === 0) ? least : most;
    return side === "left" ? tokens.slice(tokens.length - count) : tokens.slice(0, count);
  });
}

/** Probabilities of the labels, or a regression's number. */
function scoresOf(raw, { kind, center, spread, temperature }) {
  if (kind === "regression") return [raw[0] * spread + center];
  const logits = Array.from(raw, (logit) => logit / temperature);
  if (kind === "multilabel") return logits.map((logit) => 1 / (1 + Math.exp(-logit)));
  const greatest = Math.max(...logits);
  const powers = logits.map((logit) => Math.exp(logit - greatest));
  const sum = powers.reduce((total, power) => total + power);
  return powers.map((power) => power / sum);
}

export class Classifier {
  /** `read` gives the Response of a file beside this one. `info` is `model.json`. */
  static async load(info, read = (name) => fetch(new URL(name, import.meta.url))) {
    const unpacked = async (name) => {
      const response = await read(`${name}.gzip`);
      if (!response.ok) throw new Error(`${name} cannot be fetched: HTTP ${response.status}`);
      return new Response(response.body.pipeThrough(new DecompressionStream("gzip")));
    };
    const [library, graph, json] = await Promise.all([
      unpacked("ort.wasm").then((file) => file.arrayBuffer()),
      unpacked("model.onnx").then((file) => file.arrayBuffer()),
      unpacked("tokenizer.json").then((file) => file.json()),
    ]);
    Object.assign(env.wasm, { wasmBinary: library, numThreads: 1 }); // threads need headers that static servers lack
    const made = new Classifier();
    made.info = info;
    made.tokenizer = new Tokenizer(json, {});
    if (json.normalizer?.type === "BertNormalizer") made.tokenizer.normalizer = bertNormalizer(json.normalizer);
    made.session = await InferenceSession.create(new Uint8Array(graph), { executionProviders: ["wasm"] });
    return made;
  }

  /** Ids and types of a row's tokens, and whether it was cut. */
  encode(texts) {
    const joined = (first, second = null) => this.tokenizer.post_processor?.(first, second) ?? { tokens: [...first, ...(second ?? [])] };
    const whole = texts.map((text) => this.tokenizer.encode_text(text));
    const room = Math.max(this.info.max_length - joined(...whole.map(() => [])).tokens.length, 0);
    const kept = cut(whole, room, this.info.truncation_side);
    const { tokens, token_type_ids: types } = joined(...kept);
    const { model } = this.tokenizer;
    const ids = tokens.map((token) => model.tokens_to_ids.get(token) ?? model.unk_token_id);
    return { ids, types: types ?? ids.map(() => 0), isCut: kept.some((tokens, place) => tokens.length < whole[place].length) };
  }

  /** Scores of one text, or of two that are a pair: in the order of `info.labels`. */
  async classify(texts) {
    const { ids, types, isCut } = this.encode(texts);
    const values = { input_ids: ids, attention_mask: ids.map(() => 1), token_type_ids: types };
    const tensor = (name) => new Tensor("int64", BigInt64Array.from(values[name], BigInt), [1, ids.length]);
    const feeds = Object.fromEntries(this.session.inputNames.map((name) => [name, tensor(name)]));
    const { logits } = await this.session.run(feeds);
    return { scores: scoresOf(Array.from(logits.data, Number), this.info), tokens: ids.length, isCut };
  }
}
