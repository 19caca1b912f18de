// Elements, numbers and tooltips. Text from data only ever becomes a text node or an attribute, never markup.
const SVG = "http://www.w3.org/2000/svg";
const TIP = document.getElementById("tip");
const DASH = "\u2013";
const ROLE = { system: "var(--accent)", oracle: "var(--ceiling)", leaky: "var(--faint)", ceiling: "var(--ceiling)", floor: "var(--floor)" };

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (key === "on") for (const [event, action] of Object.entries(value)) node.addEventListener(event, action);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
const section = (id, ...children) => document.getElementById(id).replaceChildren(...children.flat().filter(Boolean));

// Identification is a share of won comparisons; papers print it in percent.
function number(value, column) {
  if (value === null || value === undefined) return DASH;
  return column.kind === "identification" ? `${(100 * value).toFixed(1)}%` : value.toFixed(3);
}

function signed(value) {
  return `${value < 0 ? "\u2212" : "+"}${Math.abs(value).toFixed(3)}`;
}

function seconds(value) {
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 120) return `${value.toFixed(0)} s`;
  return value < 7200 ? `${(value / 60).toFixed(0)} min` : `${(value / 3600).toFixed(1)} h`;
}

function count(value) {
  for (const [limit, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= limit) return `${(value / limit).toFixed(1)} ${unit}`;
  }
  return String(value);
}

const arrow = (column) => (column.higher_is_better ? "\u2191" : "\u2193");
const plural = (n, one, many) => `${n} ${n === 1 ? one : many}`;

// The cell of one metric: over subjects, or of the subject that is chosen.
function cellOf(row, metric, subject) {
  const cell = row.metrics[metric];
  return subject === "all" ? cell : cell.per_subject[subject];
}

function describe(row, column, subject) {
  const cell = cellOf(row, column.name, subject);
  if (!cell) return `${row.name}\n${column.label}: no value`;
  if (cell.value === null) return `${row.name}\n${column.label}: ${cell.status}`;
  const lines = [`${row.name}: ${column.label} ${arrow(column)} ${number(cell.value, column)}`];
  if (cell.interval) lines.push(`95% interval ${cell.interval.map((end) => number(end, column)).join(" to ")}`);
  if (cell.standard_error !== null) lines.push(`standard error ${cell.standard_error.toFixed(4)}`);
  lines.push(`n = ${cell.n}`);
  if (column.chance !== null) lines.push(`chance ${number(column.chance, column)}`);
  if (cell.normalised !== null && cell.normalised !== undefined) {
    lines.push(`${(100 * cell.normalised).toFixed(0)}% of the way from mean image to oracle`);
  }
  return lines.join("\n");
}

function showTip(event) {
  const source = event.target.closest?.("[data-tip]");
  // An open dialog lies above everything that is not in it.
  const home = source?.closest("dialog") ?? document.body;
  if (TIP.parentNode !== home) home.append(TIP);
  TIP.hidden = !source;
  if (!source) return;
  TIP.textContent = source.getAttribute("data-tip");
  const left = Math.min(event.clientX + 14, window.innerWidth - TIP.offsetWidth - 8);
  const top = event.clientY + 18 + TIP.offsetHeight > window.innerHeight ? event.clientY - TIP.offsetHeight - 10 : event.clientY + 18;
  TIP.style.left = `${Math.max(8, left)}px`;
  TIP.style.top = `${top}px`;
}

// A scale from a metric's unit to pixels on which right is always better.
function scaleOf(values, column, from, to) {
  const known = values.filter((value) => Number.isFinite(value));
  let low = Math.min(...known), high = Math.max(...known);
  if (!(high > low)) [low, high] = [low - 0.5, high + 0.5];
  const step = (to - from) / (high - low);
  const scale = (value) => (column.higher_is_better ? from + (value - low) * step : to - (value - low) * step);
  scale.low = low;
  scale.high = high;
  return scale;
}

// Round numbers between two ends, at most about `many`.
function ticks(low, high, many) {
  const rough = (high - low) / many;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high + 1e-9; k++) found.push(k * step);
  return found;
}

function ends(rows, column, subject) {
  return rows.flatMap((row) => {
    const cell = cellOf(row, column.name, subject);
    return cell && cell.value !== null ? [cell.value, ...(cell.interval ?? [])] : [];
  });
}
