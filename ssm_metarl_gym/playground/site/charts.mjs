// Lines over the last steps, with what happened marked.

import { prepare } from "./drawing.mjs";

const LEFT = 46; // pixels for the labels of the axis
const TOP = 6;

/** Numbers of few digits. */
export function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 100 ? value.toFixed(0) : size >= 0.01 ? String(Number(value.toPrecision(2))) : value.toExponential(0);
}

function linearTicks(low, high) {
  const rough = (high - low) / 3;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = unit * [1, 2, 5, 10].find((factor) => factor * unit >= rough);
  const ticks = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + 1e-9 * step; tick += step) ticks.push(tick);
  return ticks;
}

/**
 * Draw a chart.
 *
 * @param {HTMLCanvasElement} canvas
 * @param {object} chart
 * @param {number} chart.capacity How many steps fit into it.
 * @param {object[]} chart.lines Each of values, one a step and null where there is none, and a colour.
 * @param {boolean[]} [chart.shaded] Which steps are shaded.
 * @param {object[]} chart.marks Steps at which something happened, each of index, colour and text.
 * @param {number[]} [chart.range] What the axis has to show at least.
 * @param {boolean} [chart.isLogarithmic] With range, the bounds of the axis.
 * @param {object} colours
 */
export function drawChart(canvas, { capacity, lines, shaded = [], marks, range = [], isLogarithmic }, colours) {
  const { context, width, height } = prepare(canvas);
  const bottom = height - 6;
  const scaled = isLogarithmic ? (value) => Math.log10(Math.max(value, range[0])) : (value) => value;
  const shown = isLogarithmic ? range : [...range, ...lines.flatMap(({ values }) => values.filter(Number.isFinite))];
  let [low, high] = [Math.min(...shown), Math.max(...shown)].map(scaled);
  if (!(high > low)) high = low + 1;
  const column = (i) => LEFT + ((width - LEFT - 4) * i) / (capacity - 1);
  const row = (value) => {
    const share = (scaled(value) - low) / (high - low);
    return bottom - (bottom - TOP) * Math.min(Math.max(share, 0), 1);
  };

  context.fillStyle = colours.shade;
  const half = (column(1) - column(0)) / 2;
  for (let i = 0; i < shaded.length; i++) {
    // All steps in a row at once: where two areas met, there would be a line.
    const begin = i;
    while (shaded[i]) i++;
    if (i > begin) context.fillRect(column(begin) - half, TOP, 2 * half * (i - begin), bottom - TOP);
  }

  context.font = "11px system-ui, sans-serif";
  context.textAlign = "right";
  context.textBaseline = "middle";
  const powers = () => [-4, -2, 0].map((power) => 10 ** power);
  for (const tick of isLogarithmic ? powers() : linearTicks(low, high)) {
    context.fillStyle = colours.line;
    context.fillRect(LEFT, Math.round(row(tick)), width - LEFT, 1);
    context.fillStyle = colours.soft;
    context.fillText(isLogarithmic ? String(tick) : short(tick), LEFT - 6, row(tick));
  }

  for (const { index, colour, text } of marks) {
    context.fillStyle = colour;
    context.fillRect(column(index) - 1, TOP, 2, bottom - TOP);
    context.textAlign = column(index) > width - 80 ? "right" : "left";
    context.textBaseline = "top";
    context.font = "600 11px system-ui, sans-serif";
    if (text) context.fillText(text, column(index) + (context.textAlign === "left" ? 5 : -5), TOP);
  }

  for (const { values, colour } of lines) {
    context.beginPath();
    let isDown = false;
    values.forEach((value, i) => {
      const isThere = Number.isFinite(value);
      if (isThere) context[isDown ? "lineTo" : "moveTo"](column(i), row(value));
      isDown = isThere;
    });
    Object.assign(context, { strokeStyle: colour, lineWidth: 2, lineJoin: "round" });
    context.stroke();
  }
}
