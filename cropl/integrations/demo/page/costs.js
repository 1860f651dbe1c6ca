// Numbers as a person reads them, and the table of what both answers took.

export const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
const scaled = (value, unit, steps) => {
  const at = Math.max(0, Math.min(steps.length - 1, Math.floor(Math.log10(value || 1) / 3)));
  return `${(value / 1000 ** at).toPrecision(3)} ${steps[at]}${unit}`;
};
const flops = (value) => scaled(value, "FLOP", ["", "k", "M", "G", "T", "P"]);
const bytes = (value) => scaled(value, "B", ["", "k", "M", "G"]);
export const time = (value) => (value < 1 ? `${Math.round(1000 * value)} ms` : `${value.toFixed(1)} s`);
const count = (value) => (Number.isInteger(value) ? String(value) : value.toFixed(1));

const COSTS = [
  ["Tokens in the last layer", "kept", count],
  ["Tokens per layer, mean", "layer_average", count],
  ["Prefill, language model", "prefill_flops", flops],
  ["… with vision tower", "with_vision", flops],
  ["… and localizer", "with_localizer", flops],
  ["Key-value cache", "kv_bytes", bytes],
  ["Time to first token", "prefill_seconds", time],
  ["Time of the answer", "seconds", time],
  ["… with localizer", "localized_seconds", time],
];

/** Fill the table's body; either answer may be missing. */
export function fillCosts(body, pruned, dense) {
  const localized = pruned && pruned.localized_seconds !== null;  // dense asks no localizer
  if (dense) dense = { ...dense, localized_seconds: dense.seconds };
  const costs = COSTS.filter(([, key]) => key !== "localized_seconds" || localized);
  body.replaceChildren(...costs.map(([name, key, format]) => costRow(name, key, format, pruned, dense)));
}

function costRow(name, key, format, pruned, dense) {
  const row = document.createElement("tr"), head = document.createElement("th");
  head.scope = "row";
  head.textContent = name;
  row.append(head);
  for (const answer of [pruned, dense]) {
    row.insertCell().textContent = answer && answer[key] != null ? format(answer[key]) : "–";
  }
  const cell = row.insertCell();
  if (pruned && dense && pruned[key] != null && dense[key]) {
    const share = pruned[key] / dense[key], bar = document.createElement("span"), fill = document.createElement("i");
    bar.className = share > 1 ? "bar more" : "bar";
    fill.style.width = `${Math.min(100, 100 * share)}%`;
    bar.append(fill);
    const number = document.createElement("span");
    number.className = "percent";
    number.textContent = percent(share);
    cell.append(bar, number);
  }
  return row;
}
