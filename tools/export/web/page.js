// The page: boxes for the texts, and bars for the answer.
import { Classifier } from "./classifier.js";

// Texts and labels enter the page as textContent, never as HTML.
const at = (id) => document.getElementById(id);
const made = (tag, className = "", text = "") => Object.assign(document.createElement(tag), { className, textContent: text });
const percent = (score) => `${(100 * score).toFixed(1)}%`;
const MANY = 8; // more labels than these scroll

let classifier = null;

function tell(problem) {
  at("problem").textContent = problem.message;
  at("problem").hidden = false;
}

function showBoxes(columns) {
  at("boxes").replaceChildren(...columns.map((column, place) => {
    const box = Object.assign(made("textarea"), { id: `text-${place}`, required: true, dir: "auto" });
    const label = Object.assign(made("label", "", column), { htmlFor: box.id });
    const field = made("div");
    field.append(label, box);
    return field;
  }));
  at("task").hidden = false;
}

function showScores(labels, scores) {
  const rows = labels.map((label, place) => [label, scores[place]]).sort(([, one], [, other]) => other - one);
  at("scores").replaceChildren(...rows.map(([label, score], place) => {
    const row = made("li", place === 0 ? "chosen" : "");
    const track = made("div", "track"), bar = made("div", "bar");
    bar.style.width = `${100 * score}%`;
    track.append(bar);
    row.append(Object.assign(made("span", "label", label), { dir: "auto" }), made("span", "share", percent(score)), track);
    return row;
  }));
  at("scores").classList.toggle("many", rows.length > MANY);
  at("scores").tabIndex = rows.length > MANY ? 0 : -1;
  return rows.length ? `Best: ${rows[0][0]}, ${percent(rows[0][1])}` : "";
}

async function answer() {
  const { info } = classifier;
  const texts = info.columns.map((_, place) => at(`text-${place}`).value);
  at("problem").hidden = true;
  if (texts.some((text) => text.trim() === "")) return tell(new Error("A text is empty."));
  const began = performance.now();
  const { scores, tokens, isCut } = await classifier.classify(texts);
  const ms = performance.now() - began;
  at("number").textContent = info.kind === "regression" ? String(Number(scores[0].toPrecision(5))) : "";
  const best = showScores(info.labels, scores) || at("number").textContent;
  at("facts").textContent = `${tokens} token${tokens === 1 ? "" : "s"}, ${ms.toFixed(1)} ms`;
  at("cut").textContent = isCut ? `Cut: this page reads ${info.max_length} tokens, the text has more.` : "";
  at("result").hidden = false;
  at("spoken").textContent = `${best}. ${at("facts").textContent}. ${at("cut").textContent}`;
}

async function load() {
  const began = performance.now();
  const response = await fetch("model.json");
  if (!response.ok) throw new Error(`model.json cannot be fetched: HTTP ${response.status}`);
  const info = await response.json();
  const size = `${(info.bytes / 1e6).toFixed(1)} MB`;
  at("model").textContent = document.title = info.name;
  at("about").textContent = `Fetching ${size}…`;
  if (info.kind === "regression") at("send").textContent = "Predict";
  showBoxes(info.columns);
  classifier = await Classifier.load(info);
  const seconds = ((performance.now() - began) / 1000).toFixed(1);
  at("about").textContent = `${info.kind} · ${info.variant} · ${size} · ready after ${seconds} s`;
  at("send").disabled = false;
  at("send").removeAttribute("aria-disabled");
}

at("task").addEventListener("submit", (event) => {
  event.preventDefault();
  answer().catch(tell);
});
at("task").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && classifier) at("task").requestSubmit();
});
load().catch((problem) => {
  at("about").textContent = "The model is not there.";
  tell(problem);
});
