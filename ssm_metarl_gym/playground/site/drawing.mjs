// Pictures of the physics, on a canvas of any size.

/** A canvas in sharp pixels: its context, and its width and height as the page sees them. */
export function prepare(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const ratio = globalThis.devicePixelRatio || 1;
  const [columns, rows] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== columns || canvas.height !== rows) Object.assign(canvas, { width: columns, height: rows });
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

function line(context, points, { colour, width = 2, cap = "round", dash = [] }) {
  context.beginPath();
  points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
  Object.assign(context, { strokeStyle: colour, lineWidth: width, lineCap: cap, lineJoin: "round" });
  context.setLineDash(dash);
  context.stroke();
  context.setLineDash([]);
}

function disc(context, [x, y], radius, colour) {
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fillStyle = colour;
  context.fill();
}

function arrow(context, [x, y], [dx, dy], colour) {
  const length = Math.hypot(dx, dy);
  if (length < 3) return;
  const [ux, uy] = [dx / length, dy / length];
  const head = Math.min(9, length);
  const tip = [x + dx, y + dy];
  const back = [tip[0] - head * ux, tip[1] - head * uy];
  line(context, [[x, y], back], { colour, width: 4, cap: "butt" });
  context.beginPath();
  context.moveTo(...tip);
  context.lineTo(back[0] - 0.6 * head * uy, back[1] + 0.6 * head * ux);
  context.lineTo(back[0] + 0.6 * head * uy, back[1] - 0.6 * head * ux);
  context.closePath();
  context.fillStyle = colour;
  context.fill();
}

function drawCartPole({ context, width, height }, { state, task, taken }, colours) {
  const [x, , angle] = state;
  const scale = Math.min(width / 5.4, (height - 56) / 2.05);
  const ground = height - 22;
  const centre = width / 2 + scale * x;
  const [cartWidth, cartHeight] = [0.62 * scale, 0.3 * scale];
  const edges = [-2.4, 2.4].map((edge) => width / 2 + scale * edge);
  line(context, edges.map((edge) => [edge, ground]), { colour: colours.line, width: 3 });
  for (const edge of edges) line(context, [[edge, ground - 8], [edge, ground + 6]], { colour: colours.line, width: 3 });
  context.fillStyle = colours.ink;
  context.beginPath();
  context.roundRect(centre - cartWidth / 2, ground - cartHeight - 4, cartWidth, cartHeight, 4);
  context.fill();
  const axle = [centre, ground - cartHeight - 4];
  const length = 2 * task.length * scale;
  const tip = [axle[0] + length * Math.sin(angle), axle[1] - length * Math.cos(angle)];
  line(context, [axle, tip], { colour: colours.side, width: 5 + 6 * Math.sqrt(task.masspole) });
  disc(context, axle, 4, colours.card);
  if (taken) {
    const push = (taken[0] === 1 ? 1 : -1) * task.polarity;
    const from = [centre + (push * cartWidth) / 2, ground - cartHeight / 2 - 4];
    arrow(context, from, [push * (14 + 1.6 * task.force_mag), 0], colours.motor);
  }
}

function drawPendulum({ context, width, height }, { state, task, taken }, colours) {
  const [angle] = state;
  const scale = (Math.min(width, height) / 2 - 16) / 1.5;
  const pivot = [width / 2, height / 2];
  line(context, [pivot, [pivot[0], 12]], { colour: colours.line, width: 2, dash: [4, 6] });
  const reach = scale * task.l;
  const bob = [pivot[0] - reach * Math.sin(angle), pivot[1] - reach * Math.cos(angle)];
  line(context, [pivot, bob], { colour: colours.side, width: 7 });
  disc(context, bob, 6 + 9 * Math.sqrt(task.m), colours.side);
  disc(context, pivot, 6, colours.ink);
  if (!taken) return;
  // The torque as an arc around the pivot, counter-clockwise where it is positive.
  const torque = Math.max(-1, Math.min(1, taken[0])) * task.gain * task.polarity;
  const sweep = Math.min(Math.abs(torque), 2) * 1.3;
  if (sweep < 0.06) return;
  const radius = 26;
  const direction = Math.sign(torque);
  const end = -Math.PI / 2 - direction * sweep;
  context.beginPath();
  context.arc(...pivot, radius, -Math.PI / 2, end, direction > 0);
  Object.assign(context, { strokeStyle: colours.motor, lineWidth: 4, lineCap: "butt" });
  context.stroke();
  const at = [pivot[0] + radius * Math.cos(end), pivot[1] + radius * Math.sin(end)];
  const along = [direction * Math.sin(end), -direction * Math.cos(end)];
  arrow(context, at, along.map((one) => 9 * one), colours.motor);
}

function drawPoint({ context, width, height }, { state, task, taken, trail }, colours) {
  const scale = (Math.min(width, height) - 12) / 6;
  const place = ([x, y]) => [width / 2 + scale * x, height / 2 - scale * y];
  context.strokeStyle = colours.line;
  context.lineWidth = 2;
  context.strokeRect(width / 2 - 3 * scale, height / 2 - 3 * scale, 6 * scale, 6 * scale);
  context.beginPath();
  context.arc(...place([0, 0]), Math.max(0.35 * scale, 9), 0, 2 * Math.PI);
  Object.assign(context, { strokeStyle: colours.good, lineWidth: 4 });
  context.stroke();
  trail.slice(1).forEach((position, i) => {
    context.globalAlpha = (i + 1) / trail.length;
    line(context, [place(trail[i]), place(position)], { colour: colours.side, width: 3 });
  });
  context.globalAlpha = 1;
  const centre = place(state);
  disc(context, centre, 9, colours.side);
  if (!taken) return;
  const pushes = [0, 1].map((i) => task[`map_${i}_0`] * taken[0] + task[`map_${i}_1`] * taken[1]);
  arrow(context, centre, [40 * pushes[0], -40 * pushes[1]], colours.motor);
}

const PICTURES = { cartpole: drawCartPole, pendulum: drawPendulum, point: drawPoint };

/** Draw one run: the state of its physics, and what its motors do. */
export function drawScene(canvas, name, scene, colours) {
  PICTURES[name](prepare(canvas), scene, colours);
}
