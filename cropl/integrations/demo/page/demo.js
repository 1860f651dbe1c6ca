// The page of `cropl demo`: what is chosen, what is asked, what came of it.

import { fillCosts, percent, time } from "./costs.js";
import { listenToFiles, mark, offer, offerFirst } from "./pictures.js";
import { address, ask as askServer, getState, sendPicture } from "./server.js";
import { draw, isRegion, listen, showImage } from "./stage.js";

const NAMES = {
  ilp: "ILP: the region’s tokens", prune: "prune: ILP before layer 0", plc: "PLC: trained compressor",
  fastv: "FastV", sparsevlm: "SparseVLM", pyramiddrop: "PyramidDrop", visionzip: "VisionZip", vispruner: "VisPruner",
  divprune: "DivPrune", random: "random tokens", uniform: "uniform tokens", dense: "dense: every token",
};
const MERGED = ["sparsevlm", "visionzip"];
const $ = (id) => document.getElementById(id);
const place = ["x0", "y0", "x1", "y1"].map($);

let state;                 // of the server: models, methods, pictures
let picture = null;        // that is looked at
let question = "";         // that `located` and `answers` belong to
let drawn = null;          // the user's region, [x0, y0, x1, y1] in blocks; null takes the localizer's
let located = null;        // what the localizer said
let answers = {};          // pruned and dense
let pointed = null;        // block under the mouse, [x, y]
let running = null;        // AbortController of what is being answered
let timer = 0;

const method = () => state.methods.find((each) => each.name === $("method").value);
const label = (one) => NAMES[one.name].split(":")[0];
const shown = (layer) => document.querySelector(`[data-layer=${layer}]`).checked;
const eager = () => state.model.startsWith("testbed:");   // answers as fast as a hand moves
const current = () => drawn || (located ? located.region : null);
const follows = (one) => one.by_region && $("follow").checked;

// What is seen

function show() {
  const one = answers.pruned || (method().name === "dense" ? answers.dense : null);
  const told = located && located.region, region = current();
  const other = shown("region") && drawn && told && String(told) !== String(drawn) ? told : null;
  $("other-key").hidden = !other;
  draw({
    region: shown("region") ? region : null,
    other,
    mask: shown("kept") && one ? one.mask : null,
    heat: shown("heat") && located ? located.heat : null,
    grid: shown("grid"),
  });
  place.forEach((input, i) => { if (document.activeElement !== input) input.value = region ? region[i] : ""; });
  $("reset").disabled = !drawn;
  $("message").textContent = located ? located.message : "";
  $("message").hidden = !$("message").textContent;
  showBlock();
  showKnobs();
  showAnswers();
}

function showBlock() {
  const heat = pointed && located && located.heat, [x, y] = pointed || [];
  $("readout").textContent = pointed ? `block ${x}, ${y}` + (heat ? `: ${percent(heat[y][x])}` : "") : "";
}

function showKnobs() {
  const one = method(), total = picture.tokens, kept = answers.pruned && answers.pruned.kept;
  $("layer").max = state.layers;
  $("layer").disabled = one.layer === null;
  $("layer-value").textContent = one.layer === null ? "" : `${$("layer").value} of ${state.layers}`;
  $("follow-label").hidden = !one.by_region || !one.budget;
  const fixed = !one.budget || follows(one);
  for (const input of [$("slider"), $("budget")]) {
    input.max = total;
    input.disabled = fixed;
  }
  if (fixed) setBudget(one.name === "dense" ? total : kept || "");
  $("share").textContent = `of ${total}` + ($("budget").value ? `, ${percent($("budget").value / total)}` : "");
  const notes = [];
  if (one.by_region && !state.localizes && !drawn) notes.push("No localizer is loaded: draw a region on the picture.");
  if (!one.by_region && one.name !== "dense") notes.push(`${label(one)} looks at no region: only its budget counts.`);
  if (one.name === "plc") notes.push("It makes as many tokens as it was trained to; those of the region are outlined.");
  const placeless = !one.by_region && answers.pruned && answers.pruned.mask === null;
  if (MERGED.includes(one.name) || placeless) notes.push("Some of its tokens stand for no single place of the picture.");
  if (picture.kind !== "scene" && eager()) {
    notes.push("The testbed’s small models know signs and shapes, not photographs: expect no sense here.");
  }
  $("hint").textContent = notes.join(" ");
}

function setBudget(value) {
  $("budget").value = value;
  $("slider").value = value || 1;
}

function showAnswers() {
  const one = method(), { pruned, dense } = answers;
  const card = (name, answer, fact) => {
    $(`${name}-answer`).textContent = answer ? answer.answer || "(nothing)" : "–";
    $(`${name}-fact`).textContent = answer ? fact : "";
  };
  $("pruned-card").hidden = one.name === "dense";
  $("pruned-name").textContent = label(one);
  const localizing = pruned && pruned.localized_seconds !== null ? `, localizing ${time(located.seconds)}` : "";
  card("pruned", pruned, pruned && `${pruned.kept} of ${pruned.total} tokens, ${time(pruned.seconds)}${localizing}`);
  card("dense", dense, dense && `${dense.total} tokens, ${time(dense.seconds)}`);
  fillCosts($("costs").tBodies[0], pruned, dense);
}

function fade(...cards) {
  for (const id of ["pruned-card", "dense-card", "costs"]) $(id).classList.toggle("stale", cards.includes(id));
}

const say = (text) => { $("status").textContent = text; };

function report(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}

// What is asked

function stop() {
  clearTimeout(timer);
  if (running) running.abort();
  running = null;
}

function later(milliseconds) {
  clearTimeout(timer);
  if (question) timer = setTimeout(ask, milliseconds);
}

async function ask() {
  stop();
  report("");
  const one = method(), mine = running = new AbortController(), text = $("question").value.trim();
  if (text !== question) [located, answers] = [null, {}];
  question = text;
  fade("pruned-card", "dense-card", "costs");
  say("Asking …");
  const asked = { picture: picture.id, question, method: one.name };
  if (one.by_region) asked.region = drawn;
  if (one.layer !== null) asked.layer = Number($("layer").value);
  if (one.budget && !follows(one)) asked.budget = $("budget").value === "" ? null : Number($("budget").value);
  try {
    for await (const event of askServer(asked, mine.signal)) {
      if (mine !== running) return;
      take(event);
    }
    say("");
    running = null;
  } catch (error) {
    if (mine !== running || error.name === "AbortError") return;
    running = null;
    say("");
    report(error.message);
  }
}

function take(event) {
  if (event.stage) {
    const many = event.ahead === 1 ? "question" : "questions";
    say({
      waiting: `Waiting in line: ${event.ahead} ${many} ahead …`, localizing: "Localizing …",
      encoding: "Encoding the image …", pruned: `Answering with ${label(method())} …`, dense: "Answering dense …",
    }[event.stage]);
    return;
  }
  if (event.located) located = event.located;
  if (event.pruned) answers = { ...answers, pruned: event.pruned };
  if (event.dense) answers = { ...answers, dense: event.dense };
  if (event.pruned) fade("dense-card", "costs");
  if (event.dense) fade();
  show();
}

// What is chosen

function choosePicture(one) {
  stop();
  report("");
  say("");
  [picture, question, drawn, located, answers, pointed] = [one, "", null, null, {}, null];
  showImage(one, address(one));
  mark(one, (text) => { $("question").value = text; ask(); });
  if (one.questions.length) $("question").value = one.questions[0];
  if ($("budget").value > one.tokens) setBudget(one.tokens);
  fade();
  show();
}

function chooseMethod() {
  const one = method();
  answers = { dense: answers.dense };
  if (one.layer !== null) $("layer").value = one.layer;
  if (one.budget && !follows(one) && !($("budget").value < picture.tokens)) setBudget(Math.ceil(picture.tokens / 9));
  show();
}

function chooseRegion(region, how) {
  drawn = region;
  if (answers.pruned && method().by_region) {  // its mask was another region's
    answers = { ...answers, pruned: { ...answers.pruned, mask: null } };
  }
  show();
  if (method().by_region && (how !== "drag" || eager())) later({ drag: 120, key: 250, drawn: 0 }[how]);
}

function choose(one) {
  choosePicture(one);
  if (eager()) ask();
}

async function upload(file) {
  stop();
  report("");
  say("Uploading …");
  try {
    const one = await sendPicture(file);
    offerFirst(one, choose);
    choosePicture(one);
    say("Uploaded: ask about it.");
    $("question").focus();
  } catch (error) {
    say("");
    report(error.message);
  }
}

function listenToForm() {
  $("form").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
  $("method").addEventListener("change", () => { chooseMethod(); later(0); });
  $("layer").addEventListener("input", () => { showKnobs(); later(250); });
  $("follow").addEventListener("change", () => { showKnobs(); later(0); });
  $("slider").addEventListener("input", () => { $("budget").value = $("slider").value; showKnobs(); later(250); });
  $("budget").addEventListener("input", () => { $("slider").value = $("budget").value; showKnobs(); later(500); });
  for (const layer of document.querySelectorAll("[data-layer]")) layer.addEventListener("change", show);
}

function listenToPlace() {
  $("reset").addEventListener("click", () => chooseRegion(null, "drawn"));
  for (const input of place) {
    input.addEventListener("change", () => {
      if (place.some((each) => each.value === "")) return;
      const region = place.map((each) => Number(each.value)), fits = isRegion(region);
      report(fits ? "" : "The region must lie in 0 to 7, left to right and top to bottom.");
      if (fits) chooseRegion(region, "key");
    });
  }
}

async function start() {
  state = await getState();
  $("models").textContent = [state.model, state.localizer].filter(Boolean).join(" + ");
  $("device").textContent = `${state.device}, ${state.dtype}`;
  $("reset").hidden = !state.localizes;
  $("method").replaceChildren(...state.methods.map((one) => {
    const option = document.createElement("option");
    [option.value, option.textContent] = [one.name, NAMES[one.name]];
    option.disabled = one.missing !== null;
    option.title = one.missing || "";
    return option;
  }));
  $("method").value = state.method;
  $("layer").max = state.layers;
  $("layer").value = method().layer || 0;
  offer(state.pictures, choose);
  listenToForm();
  listenToPlace();
  listenToFiles(upload);
  choosePicture(state.pictures[0]);
  listen(current, chooseRegion, (at) => { pointed = at; showBlock(); });
  if (eager()) await ask();
}

start().catch((error) => report(`The page could not start: ${error.message}`));
