"use strict";
// One page over the server's public routes: info, stats, and the routes of each task. No dependency, no build step.

const POLL_MS = 2000;
const KEPT = 60; // samples a sparkline shows
const SAMPLES = {
  "embed": ["How do I keep bread fresh?", "Store the loaf in a paper bag.", "The train leaves at nine.", "Freeze what you will not eat."],
  "embed-tokens": ["The bank of the river, the bank on the corner."],
  "rerank": ["Store the loaf in a paper bag, cut side down.", "The train to the coast leaves at nine.", "Freeze what you will not eat within two days."],
  "classify": ["I love this, thank you!", "The parcel came broken."],
  "token-classify": ["Ada Lovelace worked with Charles Babbage in London."],
};
const LABELS = { "rerank": "Documents, one a line", "embed-tokens": "A text" };

const $ = (id) => document.getElementById(id);

/** An element; children are nodes or texts, never HTML. */
function el(name, attributes = {}, ...children) {
  const svg = name === "svg" || name === "path";
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

// --- asking the server

let apiKey = sessionStorage.getItem("bei-key") || "";

async function ask(path, body) {
  const headers = {};
  if (apiKey) headers.authorization = `Bearer ${apiKey}`;
  if (body) headers["content-type"] = "application/json";
  const response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  if (response.status === 401) $("key-form").hidden = false;
  if (!response.ok) throw new Error(`${response.status}: ${said(await response.text()) || response.statusText}`);
  return response;
}

/** The message within an error body of any of the contracts. */
function said(text) {
  try {
    const { error, message } = JSON.parse(text);
    return (error && error.message) || message || error || text;
  } catch {
    return text;
  }
}

const answer = async (path, body) => (await ask(path, body)).json();

// --- what is loaded

let models = [];

async function showModels() {
  models = (await answer("info")).models.map((m) => ({ ...m, name: m.served_model_name, labels: labelsOf(m.model_type) }));
  $("models").replaceChildren(...models.map(card));
  $("model").replaceChildren(...models.map((m) => el("option", { value: m.name }, `${m.name} (${m.task})`)));
  $("model-field").hidden = models.length < 2;
  chooseModel();
}

const embeds = (m) => m.task === "embed" || m.task === "embed-tokens";

/** In the order of the logits; none for embeddings. */
const labelsOf = (type) => Object.values((type.classifier || type.reranker || type.token_classifier || {}).id2label || {});

function card(m) {
  const facts = [
    ["engine", `${m.target}, ${m.precision}, ${m.layout}`],
    embeds(m) ? ["vector", `${m.dimensions} numbers${m.task === "embed" ? "" : " a token"}`] : ["labels", m.labels.join(", ")],
    ["text", `at most ${m.max_input_length} tokens`],
    ["source", m.model_sha ? `${m.model_id} @ ${m.model_sha.slice(0, 8)}` : m.model_id],
    ["worst text", worst(m)],
  ];
  const list = facts.filter(([, value]) => value).flatMap(([key, value]) => [el("dt", {}, key), el("dd", {}, value)]);
  const looks = { "passed": "good", "failed": "bad" }[m.parity] || "idle";
  return el("article", { class: "card" },
    el("h3", {}, m.name),
    el("div", { class: "title" }, el("span", { class: `pill ${looks}` }, `parity ${m.parity}`), el("span", { class: "soft small" }, m.task)),
    el("dl", {}, ...list));
}

function worst(m) {
  if (m.cosine_min !== null) return `cosine ${m.cosine_min >= 0.9999995 ? `1 − ${(1 - m.cosine_min).toExponential(0)}` : m.cosine_min.toFixed(6)}`;
  return m.logit_error === null ? "" : `logit off by ${m.logit_error.toExponential(0)}`;
}

// --- how it is doing

const history = {};
let before = null;

/** Name, value and digits of what has changed between two answers of /stats, ``seconds`` apart. */
function figures(now, old, seconds) {
  const sum = (stats, key) => stats.models.reduce((total, m) => total + m[key], 0);
  const rate = (key) => (sum(now, key) - sum(old, key)) / seconds;
  const slots = now.models.reduce((total, m) => total + m.tokens / (1 - m.padding_waste), 0);
  return [
    ["texts a second", rate("rows"), 0],
    ["tokens a second", rate("tokens"), 0],
    ["p50 latency, ms", now.recent.p50, 1],
    ["p99 latency, ms", now.recent.p99, 1],
    ["tokens waiting", sum(now, "queue_tokens"), 0],
    ["padding, % of tokens", slots ? 100 * (1 - sum(now, "tokens") / slots) : null, 1],
  ];
}

function tile([name, value, digits]) {
  const line = (history[name] ||= []);
  line.push(value);
  if (line.length > KEPT) line.shift();
  const shown = value === null ? "–" : value.toLocaleString("en", { maximumFractionDigits: digits });
  return el("div", { class: "card" }, el("span", { class: "soft small" }, name), el("b", {}, shown), sparkline(line));
}

function sparkline(values) {
  const top = Math.max(...values, 1e-9);
  const at = (value, i) => `${(100 * (KEPT - values.length + i)) / (KEPT - 1)},${(29 - (28 * (value || 0)) / top).toFixed(1)}`;
  const path = values.map((value, i) => `${i ? "L" : "M"}${at(value, i)}`).join("");
  const svg = el("svg", { viewBox: "0 0 100 30", preserveAspectRatio: "none", "aria-hidden": "true" });
  svg.append(el("path", { d: path, fill: "none", stroke: "currentColor", "stroke-width": "1.5", "vector-effect": "non-scaling-stroke" }));
  return svg;
}

async function showLive() {
  const now = { at: performance.now(), stats: await answer("stats") };
  if (before) $("live").replaceChildren(...figures(now.stats, before.stats, (now.at - before.at) / 1000).map(tile));
  before = now;
}

async function showState() {
  const health = await fetch("health").catch(() => null);
  const [text, looks] = health === null ? ["not reachable", "bad"] : health.ok ? ["ready", "good"] : ["not ready", "idle"];
  if ($("state").textContent !== text) $("state").textContent = text;
  $("state").className = `pill ${looks}`;
}

async function poll() {
  if (!document.hidden) {
    await showState();
    try {
      if (!models.length) await showModels();
      await showLive();
      $("live-note").textContent = "";
    } catch (error) {
      $("live-note").textContent = error.message;
    }
  }
  setTimeout(poll, POLL_MS);
}

// --- the playground

const chosen = () => models.find((m) => m.name === $("model").value) || models[0];

function chooseModel() {
  const m = chosen();
  if (!m) return;
  $("query-field").hidden = m.task !== "rerank";
  $("strategy-field").hidden = m.task !== "token-classify";
  const prompts = embeds(m) ? Object.keys(m.prompts) : [];
  $("prompt-field").hidden = !prompts.length;
  $("prompt").replaceChildren(el("option", { value: "" }, "the model's default"), ...prompts.map((name) => el("option", { value: name }, name)));
  $("texts-label").textContent = LABELS[m.task] || "Texts, one a line";
  $("texts").value = SAMPLES[m.task].join("\n");
  $("query").value = m.task === "rerank" ? SAMPLES.embed[0] : "";
  $("result").replaceChildren();
}

const TASKS = {
  "embed": async (m, texts) => {
    const body = { model: m.name, input: texts };
    if ($("prompt").value) body.prompt_name = $("prompt").value;
    return heatMap(texts, (await answer("v1/embeddings", body)).data.map((row) => row.embedding));
  },
  "embed-tokens": async (m, texts) => {
    const body = { model: m.name, inputs: texts.join(" ") };
    if ($("prompt").value) body.prompt_name = $("prompt").value;
    const [[vectors], [tokens]] = await Promise.all([answer("embed_all", body), answer("tokenize", body)]);
    return heatMap(vectors.map((_, i) => tokens[i]?.text ?? ""), vectors);
  },
  "rerank": async (m, texts) => {
    const query = $("query").value;
    if (!query.trim()) throw new Error("Give a query.");
    const found = await answer("rerank", { model: m.name, query, texts });
    return bars("ol", found.map(({ index, score }) => [texts[index], score]));
  },
  "classify": async (m, texts) => {
    const found = await answer("predict", { model: m.name, inputs: texts.map((text) => [text]) });
    return el("div", {}, ...found.map((labels, i) => el("div", {},
      el("p", {}, texts[i]), bars("ul", labels.slice(0, 5).map(({ label, score }) => [label, score])))));
  },
  "token-classify": async (m, texts) => {
    const body = { model: m.name, inputs: texts.map((text) => [text]), aggregation_strategy: $("strategy").value };
    const found = await answer("predict_tokens", body);
    return el("div", {}, ...found.map((spans, i) => marked(texts[i], spans)));
  },
};

/** Cosine of each pair, as a table whose cells are the darker the closer. */
function heatMap(texts, vectors) {
  const unit = vectors.map((v) => {
    const size = Math.hypot(...v) || 1;
    return v.map((x) => x / size);
  });
  const cosine = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
  const head = el("thead", {}, el("tr", {}, el("td"), ...texts.map((_, i) => el("th", { scope: "col" }, `${i + 1}`))));
  const rows = unit.map((a, i) => el("tr", {}, el("th", { scope: "row" }, `${i + 1} ${texts[i]}`), ...unit.map((b) => {
    const value = cosine(a, b);
    const cell = el("td", {}, value.toFixed(2));
    cell.style.setProperty("--heat", (0.5 * Math.max(0, value)).toFixed(3));
    return cell;
  })));
  return el("div", { class: "wide", role: "region", "aria-label": "Cosine similarities", tabindex: "0" },
    el("table", {}, head, el("tbody", {}, ...rows)));
}

function bars(kind, rows) {
  return el(kind, { class: "bars" }, ...rows.map(([name, score]) => {
    const filled = el("i");
    filled.style.width = `${(100 * Math.min(1, Math.max(0, score))).toFixed(1)}%`;
    return el("li", {}, el("div", { class: "row" }, el("span", {}, name), el("span", {}, score.toFixed(4))), el("div", { class: "bar" }, filled));
  }));
}

/** The text with its spans highlighted; offsets count characters, not UTF-16 units. */
function marked(text, spans) {
  const characters = Array.from(text);
  const piece = (from, to) => characters.slice(from, to).join("");
  const out = el("p", { class: "text" });
  let at = 0;
  for (const span of [...spans].sort((a, b) => a.start - b.start)) {
    const [label, score] = Object.entries(span.results).sort((a, b) => b[1] - a[1])[0];
    out.append(piece(at, span.start), el("mark", { title: `${label} ${score.toFixed(4)}` }, piece(span.start, span.end), el("small", {}, label)));
    at = span.end;
  }
  out.append(piece(at));
  return out;
}

async function run(event) {
  event.preventDefault();
  const m = chosen();
  const texts = $("texts").value.split("\n").filter((line) => line.trim());
  const message = $("message");
  message.className = "";
  if (!m || !texts.length) {
    message.textContent = m ? "Give at least one text." : "No model is loaded.";
    return;
  }
  $("run").disabled = true;
  const began = performance.now();
  try {
    $("result").replaceChildren(await TASKS[m.task](m, texts));
    message.textContent = `${texts.length} ${texts.length === 1 ? "text" : "texts"} in ${(performance.now() - began).toFixed(0)} ms, the way to the server included`;
  } catch (error) {
    message.className = "bad";
    message.textContent = error.message;
    $("result").replaceChildren();
  }
  $("run").disabled = false;
}

$("try").addEventListener("submit", run);
$("model").addEventListener("change", chooseModel);
$("texts").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("try").requestSubmit();
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  apiKey = $("key").value.trim();
  sessionStorage.setItem("bei-key", apiKey);
  $("key-form").hidden = true;
  models = [];
});
poll();
