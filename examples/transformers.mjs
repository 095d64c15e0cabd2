// Classify texts with an artifact in JavaScript, without a service: in Node, by transformers.js.
//
//   npm install @huggingface/transformers
//   node transformers.mjs ARTIFACT 'a text' ['the second text of a pair']
//
// Prints the labels with their probabilities, as `kdc predict` computes them.
import { readFileSync } from "node:fs";
import { basename, dirname, resolve } from "node:path";
import { AutoModelForSequenceClassification, AutoTokenizer, env } from "@huggingface/transformers";

const [folder, text, second] = process.argv.slice(2);
env.allowRemoteModels = false; // a local folder; a repository's id works too
env.localModelPath = dirname(resolve(folder));
const place = basename(resolve(folder));
const manifest = JSON.parse(readFileSync(`${folder}/manifest.json`, "utf8"));
const dtype = manifest.variants.int8 ? "int8" : "fp32";

const tokenizer = await AutoTokenizer.from_pretrained(place);
const model = await AutoModelForSequenceClassification.from_pretrained(place, { subfolder: "", dtype });
const options = { truncation: true, return_token_type_ids: manifest.input_names.includes("token_type_ids") };
const { logits } = await model(tokenizer(text, { text_pair: second ?? null, ...options }));

const scores = Array.from(logits.data, (logit) => logit / manifest.temperature); // 1, unless an older kdc made the artifact
const greatest = Math.max(...scores);
const powers = scores.map((score) => Math.exp(score - greatest));
const sum = powers.reduce((total, power) => total + power);
const { kind, labels } = manifest.task;
scores.forEach((score, place) => {
  if (kind === "regression") console.log(Number(logits.data[place]) * manifest.task.spread + manifest.task.center);
  else console.log(labels[place], kind === "classification" ? powers[place] / sum : 1 / (1 + Math.exp(-score)));
});
