// Classify texts with `kdc serve` from Node 20 or newer, without a package, and retry if the service is busy.
//
//     node client.mjs 'a gripping film' dull        # or one text a line on standard input
//
// Prints label and score of each; blank lines are left out. A tab separates the two texts of a pair. KDC_URL names the
// service (default http://localhost:3000), KDC_TOKEN holds its bearer token, if it needs one.
//
// 429, 503 and connections that fail are tried again, after `Retry-After` and a random pause that doubles, until the
// tries or the seconds are used up. Every other answer is final. What is not answered ends the program: exit code 1.

import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";

const SERVICE = process.env.KDC_URL ?? "http://localhost:3000";
const TOKEN = process.env.KDC_TOKEN;
const BUSY = new Set([429, 503]); // nothing was computed; a 422 would fail again
const TRIES = 5;
const TOTAL_MS = 30_000; // of a request with all its tries and pauses
const TRY_MS = 12_000; // of one try: longer than the service takes to say 504 (KDC_TIMEOUT_S, 10)
const PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 5_000;
const ROWS = 32; // of a request

class NoAnswer extends Error {}

/** The best label and its score, `{label, score}`, of each of `rows`: [text] or [text, text]. */
async function classify(rows) {
  const headers = { "Content-Type": "application/json" };
  if (TOKEN) headers.Authorization = `Bearer ${TOKEN}`;
  const body = JSON.stringify({ inputs: rows, parameters: { top_k: 1 } });
  const ends = Date.now() + TOTAL_MS;
  let why;
  for (let attempt = 1; attempt <= TRIES; attempt++) {
    let pause = Math.random() * Math.min(PAUSE_MS * 2 ** attempt, LONGEST_PAUSE_MS);
    try {
      const signal = AbortSignal.timeout(Math.max(1, Math.min(TRY_MS, ends - Date.now())));
      const reply = await fetch(`${SERVICE}/predict`, { method: "POST", headers, body, signal });
      const text = await reply.text(); // read to its end, so that the connection is kept
      if (reply.ok) return JSON.parse(text).map(([best]) => best);
      why = `${reply.status} ${text}`;
      if (!BUSY.has(reply.status)) throw new NoAnswer(why);
      pause += retryAfter(reply);
    } catch (error) {
      // A connection that failed is tried again: asking twice does no harm.
      if (error instanceof NoAnswer || error instanceof SyntaxError) throw error;
      why = error.cause ? `${error.message}: ${error.cause.code ?? error.cause.message}` : error.message;
    }
    if (attempt === TRIES || Date.now() + pause > ends) throw new NoAnswer(`gave up after ${attempt} tries: ${why}`);
    await sleep(pause);
  }
}

/** Milliseconds. The service tells seconds; a proxy before it may tell a date. */
function retryAfter(reply) {
  const told = reply.headers.get("Retry-After") ?? "";
  if (/^\d+$/.test(told)) return 1000 * Number(told);
  return Math.max(0, (Date.parse(told) || 0) - Date.now());
}

async function main() {
  const given = process.argv.slice(2);
  let rows = [];
  const flush = async () => {
    for (const { label, score } of await classify(rows)) console.log(`${label}\t${score.toFixed(4)}`);
    rows = [];
  };
  for await (const line of given.length ? given : createInterface({ input: process.stdin })) {
    if (line.trim()) rows.push(line.split("\t"));
    if (rows.length === ROWS) await flush();
  }
  if (rows.length) await flush();
}

try {
  await main();
} catch (error) {
  console.error(`error: ${error.message}`);
  process.exitCode = 1;
}
