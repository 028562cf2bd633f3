"use strict";
// Draws what stands in #reading; nothing of the model is computed here. Texts become text nodes, never markup.

const reading = JSON.parse(byId("reading").textContent);
const [main, ...others] = reading.texts;
const CHUNK = 256; // tokens built in one frame
const ROWS = 100; // of a table on show
const BARS = 10; // entries of a list of bars
const SIDE = 840; // pixels of a picture, which shows at half that
const WEIGHT_STEPS = 65535; // a stored weight is a whole number of these
const [LEFT_TO_RIGHT, OWN_WAY, END] = ["\u2066", "\u2068", "\u2069"]; // isolates: what is within has its own direction
const COMPACT = new Intl.NumberFormat("en", { notation: "compact" });
const state = { token: 0, layer: 0, head: 0, form: 0, other: 0, left: null, right: null };

// ------------------------------------------------------------------------------------------------------------ helpers
function byId(id) {
  return document.getElementById(id);
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function drawn(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const TYPES = { uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array, float32: Float32Array, float64: Float64Array };

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64); // many times faster, and not in every browser yet
  const binary = atob(base64);
  const bytes = new Uint8Array(binary.length);
  for (let place = 0; place < binary.length; place++) bytes[place] = binary.charCodeAt(place);
  return bytes;
}

/** The numbers of a packed array, decoded when they are first asked for. */
function numbers(packed) {
  if (!packed.numbers) {
    packed.numbers = new TYPES[packed.type](bytesOf(packed.data).buffer);
    packed.data = null;
  }
  return packed.numbers;
}

/** Row `index` of a table. */
function row(packed, index) {
  const length = packed.shape.at(-1);
  return numbers(packed).subarray(index * length, (index + 1) * length);
}

const sum = (values) => values.reduce((total, value) => total + value, 0);
const percent = (share, digits = 2) => `${(100 * share).toFixed(digits)} %`.replace("-", "−");
const decimal = (value, digits) => value.toFixed(digits).replace("-", "−");
const largest = (values) => values.reduce((most, value) => Math.max(most, Math.abs(value)), 0) || 1;
const places = (values) => Array.from(values.keys()).sort((a, b) => values[b] - values[a]);
const whole = (value) => value.toLocaleString("en");

// ------------------------------------------------------------------------------------------------------------- tokens
/** What a token looks like: marks for what cannot be seen, hexadecimal for bytes, the one left of the other in any script. */
function spelling(text, place) {
  const spelled = text.spelled[place];
  if (typeof spelled === "string") return visible(spelled);
  const [byte, character, number] = spelled;
  return number === 1 && character ? `${LEFT_TO_RIGHT}${OWN_WAY}${visible(character)}${END} 0x${byte}${END}` : `0x${byte}`;
}

/** Line ends, tabs, and characters without a form of their own, as signs. */
function visible(spelled) {
  return spelled.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/[\p{C}\u2028\u2029]/gu, (character) =>
    character.codePointAt(0) === 0x200d && spelled.length > 1 ? character : `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`);
}

/** A token in words: its place, what it spells, and what kind it is. */
function named(text, place) {
  const spelled = text.spelled[place];
  if (typeof spelled === "string") return `“${visible(spelled)}”`;
  const [byte, character, number, count] = spelled;
  return character ? `byte ${byte}, ${number} of ${count} of “${visible(character)}”` : `byte ${byte}`;
}

function kind(text, place) {
  if (text.special.includes(place)) return "special";
  return place < text.opening ? "prompt" : "text";
}

function endsLine(text, place) {
  const spelled = text.spelled[place];
  return typeof spelled === "string" ? spelled.includes("\n") : spelled[1] === "\n";
}

/** The direction that a text's own letters give it. */
function direction(text) {
  const probe = element("p", { dir: "auto", hidden: "" }, text);
  document.body.append(probe);
  const found = getComputedStyle(probe).direction;
  probe.remove();
  return found;
}

/** A list box of a text's tokens: click or arrow keys choose one; colours and bars show a strength of each. */
class Tokens {
  constructor(box, text, choose) {
    Object.assign(this, { box, text, choose, options: [], chosen: null, strengths: null, unseen: null });
    box.tokens = this;
    box.replaceChildren();
    const label = text.prompt ? "prompt" : "start";
    this.opening = element("div", { role: "group", class: "opening", "aria-label": label, "data-label": label });
    this.rest = element("div", { role: "group", "aria-label": "text", dir: direction(text.text) });
    this.forward = this.rest.dir === "rtl" ? "ArrowLeft" : "ArrowRight";
    box.append(this.opening, this.rest);
    box.onclick = (event) => {
      const option = event.target.closest("[role=option]");
      if (option) this.choose(Number(option.dataset.place));
    };
    box.onkeydown = (event) => this.pressed(event);
    this.build();
  }

  /** Options for the next chunk of tokens; the rest when the browser has drawn these. */
  build() {
    if (this.box.tokens !== this) return; // another text was put into the box
    const from = this.options.length;
    const to = Math.min(from + CHUNK, this.text.ids.length);
    const groups = [document.createDocumentFragment(), document.createDocumentFragment()];
    for (let place = from; place < to; place++) {
      const option = this.option(place);
      this.options.push(option);
      const group = groups[place < this.text.opening ? 0 : 1];
      group.append(option);
      if (endsLine(this.text, place)) group.append(element("br"));
    }
    this.opening.append(groups[0]);
    this.rest.append(groups[1]);
    this.colour(this.strengths, this.unseen, from);
    if (this.chosen !== null && this.chosen >= from && this.chosen < to) this.select(this.chosen);
    if (to < this.text.ids.length) requestAnimationFrame(() => this.build());
  }

  option(place) {
    const spelled = this.text.spelled[place];
    const shown = spelling(this.text, place);
    const option = element("span", { role: "option", id: `${this.box.id}-${place}`, "data-place": place, "aria-selected": "false" });
    option.setAttribute("aria-label", `${place} ${kind(this.text, place)} ${named(this.text, place)}`);
    if (typeof spelled !== "string") option.classList.add("byte");
    if (kind(this.text, place) === "special") option.classList.add("special");
    for (const part of shown.split(/([↵⇥])/)) option.append(/[↵⇥]/.test(part) ? element("span", { class: "mark" }, part) : part);
    return option;
  }

  /** Show strengths, which are relative to the largest; tokens for which unseen(place) are marked as out of reach. */
  colour(strengths, unseen = null, from = 0) {
    Object.assign(this, { strengths, unseen });
    if (!strengths) return;
    const most = largest(strengths);
    for (let place = from; place < this.options.length; place++) {
      const option = this.options[place];
      const strength = (Math.abs(strengths[place]) / most).toFixed(2);
      if (option.strength !== strength) option.style.setProperty("--s", option.strength = strength); // the slow part
      option.classList.toggle("less", strengths[place] < 0);
      option.classList.toggle("unseen", Boolean(unseen && unseen(place)));
    }
  }

  select(place) {
    if (this.chosen !== null) this.options[this.chosen]?.setAttribute("aria-selected", "false");
    this.chosen = place;
    const option = place === null ? null : this.options[place];
    if (!option) return this.box.removeAttribute("aria-activedescendant");
    option.setAttribute("aria-selected", "true");
    this.box.setAttribute("aria-activedescendant", option.id);
    const top = option.offsetTop - this.box.offsetTop;
    if (top < this.box.scrollTop || top + option.offsetHeight > this.box.scrollTop + this.box.clientHeight) this.box.scrollTop = top - this.box.clientHeight / 3;
  }

  pressed(event) {
    const steps = { [this.forward]: 1, [this.forward === "ArrowRight" ? "ArrowLeft" : "ArrowRight"]: -1, ArrowDown: 10, ArrowUp: -10, PageDown: 50, PageUp: -50, Home: -Infinity, End: Infinity };
    const last = this.text.ids.length - 1;
    if (event.key === "Escape") this.choose(null);
    if (!(event.key in steps) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.choose(Math.min(last, Math.max(0, (this.chosen ?? -1) + steps[event.key])));
  }
}

// ----------------------------------------------------------------------------------------------------- lists and tables
/** A list of bars, each entry [label, strength 0 to 1, number, whether it counts against]. */
function bars(list, entries) {
  list.replaceChildren(...entries.map(([label, strength, number, less]) => {
    const bar = element("span", { class: "bar" });
    bar.style.setProperty("--s", strength.toFixed(4));
    return element("li", less ? { class: "less" } : {}, element("bdi", { class: "word" }, label), bar, element("span", { class: "number" }, number));
  }));
}

function shortName(text, place) {
  return `${place} ${OWN_WAY}${spelling(text, place).replace(/^ (?=\S)/, "")}${END}`;
}

/** Fill a <details> with a table, a hundred rows at a time, once it is opened. rowOf(i) gives the cells of row i; a
 *  column is [head], of numbers, or [head, "word"]. */
function table(details, caption, heads, count, rowOf) {
  let first = 0;
  const body = element("tbody");
  const where = element("span");
  const move = (by) => {
    first = Math.min(Math.max(0, first + by), ROWS * Math.floor(Math.max(count - 1, 0) / ROWS));
    const shown = Math.min(first + ROWS, count);
    where.textContent = `Rows ${first + 1} to ${shown} of ${count}`;
    body.replaceChildren(...Array.from({ length: shown - first }, (_, index) => element("tr", {}, ...rowOf(first + index).map((cell, column) =>
      heads[column][1] ? element("td", { class: "word" }, element("bdi", {}, cell)) : element("td", { class: "number" }, String(cell))))));
  };
  const fill = () => {
    details.querySelector(".filling")?.remove();
    if (!details.open) return;
    const made = element("table", {}, element("caption", {}, caption), element("thead", {}, element("tr", {}, ...heads.map(([head, word]) => element("th", { scope: "col", class: word ?? "number" }, head)))), body);
    const filling = element("div", { class: "filling" }, element("div", { class: "scrolled", role: "region", tabindex: "0", "aria-label": caption }, made));
    if (count > ROWS) {
      const back = element("button", { type: "button" }, "Back");
      const on = element("button", { type: "button" }, "On");
      back.onclick = () => move(-ROWS);
      on.onclick = () => move(ROWS);
      filling.append(element("div", { class: "pages" }, back, on, where));
    }
    details.append(filling);
    move(0);
  };
  details.ontoggle = fill;
  fill();
}

/** Radio buttons as chips; choose(index) is called for the one that is checked. */
function chips(set, name, labels, chosen, choose) {
  labels.forEach(([shown, spoken, style], index) => {
    const input = element("input", { type: "radio", name, value: index, "aria-label": spoken });
    input.checked = index === chosen;
    input.onchange = () => choose(index);
    set.append(element("label", style ? { class: style } : {}, input, element("span", { "aria-hidden": "true" }, shown)));
  });
}

// ------------------------------------------------------------------------------------------------------------ pictures
/** The red, green and blue of one of the page's colours. */
function colour(name) {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map((place) => parseInt(hex.slice(place, place + 2), 16));
}

const pictures = new Map(); // packed table -> its picture, a cell a pixel, in the colours of now

/** The picture of a packed table, the colour of each cell its share of the largest magnitude. */
function picture(packed) {
  if (pictures.has(packed)) return pictures.get(packed);
  const [rows, columns] = packed.shape;
  const cells = numbers(packed);
  const most = largest(cells);
  const [card, more, less] = [colour("--card"), colour("--more"), colour("--less")];
  const image = new ImageData(columns, rows);
  for (let cell = 0; cell < rows * columns; cell++) {
    const to = cells[cell] < 0 ? less : more;
    const share = Math.abs(cells[cell]) / most;
    for (let channel = 0; channel < 3; channel++) image.data[4 * cell + channel] = card[channel] + share * (to[channel] - card[channel]);
    image.data[4 * cell + 3] = 255;
  }
  const small = new OffscreenCanvas(columns, rows);
  small.getContext("2d").putImageData(image, 0, 0);
  pictures.set(packed, small);
  return small;
}

/** Draw a packed table's picture in squares, on a canvas of about SIDE pixels or more. */
function paint(canvas, packed) {
  const [rows, columns] = packed.shape;
  const scale = Math.max(1, Math.min(48, Math.ceil(SIDE / Math.max(rows, columns))));
  canvas.width = columns * scale;
  canvas.height = rows * scale;
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(picture(packed), 0, 0, canvas.width, canvas.height);
  return context;
}

// ---------------------------------------------------------------------------------------------------------- the sections
const tokens = main.ids.length;
const sees = (layer, query, key) => !reading.sliding[layer] || Math.abs(query - key) <= reading.reach;
const kindOfLayer = (layer) => (reading.sliding[layer] ? "sliding" : "full");

/** What the chosen token reads in the chosen layer and head: places, weights, and the weight of keys that are not stored. */
function reads() {
  const head = reading.attention[state.layer][state.head];
  const [keys, weights] = [row(head.places, state.token), row(head.weights, state.token)];
  const seen = Array.from(keys.keys()).filter((entry) => sees(state.layer, state.token, keys[entry]));
  return {
    places: seen.map((entry) => keys[entry]),
    weights: seen.map((entry) => weights[entry] / WEIGHT_STEPS),
    rest: numbers(head.rest)[state.token] / WEIGHT_STEPS,
  };
}

function formName({ length, quantize }) {
  return `${length} numbers, ${quantize ?? "float32"} (${whole(quantize ? length : 4 * length)} bytes)`;
}

function showTokens() {
  const shares = row(main.shares, state.form);
  const reading_ = byId("paint").querySelector(":checked").value === "attention";
  if (reading_) {
    const { places: keys, weights } = reads();
    const strengths = new Float32Array(tokens);
    keys.forEach((key, entry) => { strengths[key] = weights[entry]; });
    list.colour(strengths, (place) => !sees(state.layer, state.token, place));
    byId("legend").textContent = `Bars below a token: how much of it the chosen token reads in layer ${state.layer}, head ${state.head}, the tallest being the most. A dotted line and no frame: out of its window.`;
  } else {
    list.colour(shares);
    byId("legend").textContent = "A bar below a token (blue): it adds to the vector; a bar above it (orange): it pulls away. The tallest is the largest share. Dashed frames: special tokens. 0x and two digits: a byte of a character that the tokenizer has no piece for.";
  }
}

function showChosen() {
  const shares = row(main.shares, state.form);
  const rank = 1 + shares.reduce((before, share) => before + (share > shares[state.token]), 0);
  byId("chosen").textContent = `Token ${state.token}: ${named(main, state.token)}, id ${main.ids[state.token]}, ${kind(main, state.token)}. It adds ${percent(shares[state.token])} of the vector, place ${rank} of ${tokens}.`;
}

function showShares() {
  const shares = row(main.shares, state.form);
  const order = places(shares.map(Math.abs));
  const most = Math.abs(shares[order[0]]);
  bars(byId("largest-shares"), order.slice(0, BARS).map((place) => [shortName(main, place), Math.abs(shares[place]) / most, percent(shares[place]), shares[place] < 0]));
  const of = { special: 0, prompt: 0, text: 0 };
  shares.forEach((share, place) => { of[kinds[place]] += share; });
  byId("share-sums").textContent = `Text ${percent(of.text)}, prompt ${percent(of.prompt)}, special tokens ${percent(of.special)}: together ${percent(sum(shares))}. Only the ${Math.min(BARS, tokens)} largest are listed.`;
  const sizes = reading.norms.tokens;
  table(byId("share-table"), `Tokens, and what each adds to the vector of ${formName(reading.forms[state.form])}`, [["place"], ["token", "word"], ["id"], ["kind", "word"], ["share"], ["size after the last layer"]], tokens, (place) =>
    [place, spelling(main, place), main.ids[place], kinds[place], percent(shares[place], 3), row(sizes, sizes.shape[0] - 1)[place].toPrecision(4)]);
}

function showReads() {
  const { places: keys, weights, rest } = reads();
  const shown = Math.min(BARS, keys.length);
  byId("reads-heading").textContent = `Token ${state.token}, ${named(main, state.token)}, reads most`;
  bars(byId("reads"), keys.slice(0, shown).map((key, entry) => [shortName(main, key), weights[entry] / (weights[0] || 1), percent(weights[entry])]));
  const listed = sum(weights.slice(0, shown));
  const stored = sum(weights.slice(shown));
  byId("reads-sum").textContent = `Listed ${percent(listed)}, ${keys.length - shown} more stored ${percent(stored)}, not stored ${percent(rest)}: together ${percent(listed + stored + rest)}.`;
  const from = reading.sliding[state.layer] ? Math.max(0, state.token - reading.reach) : 0;
  const to = reading.sliding[state.layer] ? Math.min(tokens - 1, state.token + reading.reach) : tokens - 1;
  byId("window").textContent = `Layer ${state.layer} of ${reading.sliding.length} (from 0) is ${kindOfLayer(state.layer)}: ` + (reading.sliding[state.layer]
    ? `a token reads those at most ${reading.reach} places away; token ${state.token} reads ${from} to ${to}, ${to - from + 1} of ${tokens}.`
    : `every token reads all ${tokens}.`);
  table(byId("reads-table"), `Keys of token ${state.token}, layer ${state.layer}, head ${state.head}`, [["place"], ["token", "word"], ["weight"]], keys.length, (entry) =>
    [keys[entry], spelling(main, keys[entry]), decimal(weights[entry], 5)]);
}

function showMap() {
  const canvas = byId("map");
  const { map } = reading.attention[state.layer][state.head];
  const context = paint(canvas, map);
  const unit = canvas.width / tokens; // a token's side
  const ink = getComputedStyle(document.documentElement).getPropertyValue("--ink");
  if (reading.sliding[state.layer] && reading.reach < tokens) {
    context.strokeStyle = context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--quiet");
    context.lineWidth = 2;
    const edge = (reading.reach + 1) * unit;
    for (const [x, y] of [[edge, 0], [0, edge]]) {
      const end = canvas.width - edge;
      context.beginPath();
      context.moveTo(x, y);
      context.lineTo(x + end, y + end);
      context.stroke();
      context.save();
      context.beginPath(); // the corner beyond the window, hatched
      context.moveTo(x, y);
      context.lineTo(x + end, y + end);
      context.lineTo(x ? canvas.width : 0, x ? 0 : canvas.height);
      context.clip();
      context.globalAlpha = 0.35;
      for (let at = -canvas.width; at < canvas.width; at += 16) {
        context.beginPath();
        context.moveTo(at, canvas.height);
        context.lineTo(at + canvas.width, 0);
        context.moveTo(at + canvas.width, canvas.height);
        context.lineTo(at + 2 * canvas.width, 0);
        context.stroke();
      }
      context.restore();
    }
  }
  context.strokeStyle = ink;
  context.lineWidth = 4;
  context.strokeRect(2, state.token * unit, canvas.width - 4, Math.max(4, unit));
  const step = reading.map_step;
  byId("map-caption").textContent = `A row reads, a column is read; ${step === 1 ? "a cell is a pair of tokens" : `a cell is ${step} × ${step} tokens, on average`}. The framed row is the chosen token; hatched is beyond the window. Darkness grows with the square root of the weight. Click a row to choose its token.`;
  canvas.setAttribute("aria-label", `Attention of layer ${state.layer}, ${kindOfLayer(state.layer)}, head ${state.head}: the list beside it tells the chosen token's row`);
}

function choose(place) {
  if (place === null) return;
  state.token = place;
  list.select(place);
  showChosen();
  showTokens();
  showReads();
  showMap();
  showNorms();
}

function chooseHead() {
  showTokens();
  showReads();
  showMap();
}

/** The size of the residual stream over layers, on a logarithmic scale, with the chosen token's own. */
function showNorms() {
  const { residual, largest: peaks, attention, mlp, tokens: sizes } = reading.norms;
  const own = residual.map((_, layer) => row(sizes, layer)[state.token]);
  const lines = [
    ["largest number", peaks, "--less", "none", 0],
    ["root mean square", residual, "--more", "none", 0],
    [`root mean square of token ${state.token}`, own, "--ink", "7 4", 0],
    ["attention’s update", attention, "--quiet", "2 3", 1],
    ["MLP’s update", mlp, "--quiet", "10 3 2 3", 1],
  ];
  const values = lines.flatMap(([, line]) => Array.from(line)).filter((value) => value > 0);
  const low = Math.floor(Math.log10(Math.min(...values)));
  const high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(...values))));
  const [width, height, left, right, bottom] = [Math.max(320, byId("norms").clientWidth - 40), 260, 52, 32, 30];
  const x = (layer) => left + (layer / (residual.length - 1)) * (width - left - right);
  const y = (value) => 8 + ((high - Math.log10(value)) / (high - low)) * (height - bottom - 8);
  const chart = byId("chart");
  chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
  chart.replaceChildren();
  for (let power = low; power <= high; power++) {
    chart.append(drawn("line", { class: "chart-axis", x1: left, x2: width - right, y1: y(10 ** power), y2: y(10 ** power) }));
    chart.append(drawn("text", { x: left - 8, y: y(10 ** power) + 4, "text-anchor": "end" }, power < 0 ? String(10 ** power) : COMPACT.format(10 ** power)));
  }
  const every = Math.ceil((residual.length * 70) / width);
  residual.forEach((_, layer) => {
    if (layer % every === 0) chart.append(drawn("text", { x: x(layer), y: height - 8, "text-anchor": "middle" }, layer ? `layer ${layer - 1}` : "table"));
  });
  byId("chart-legend").replaceChildren();
  for (const [name, line, stroke, dashes, from] of lines) {
    const points = Array.from(line, (value, layer) => `${x(layer + from).toFixed(1)},${y(Math.max(value, 10 ** low)).toFixed(1)}`);
    const look = { class: "chart-line", stroke: `var(${stroke})`, "stroke-dasharray": dashes };
    chart.append(drawn("polyline", { ...look, points: points.join(" ") }));
    byId("chart-legend").append(element("span", { class: "key" }, drawn("svg", { viewBox: "0 0 34 10", "aria-hidden": "true" }, drawn("line", { ...look, x1: 0, x2: 34, y1: 5, y2: 5 })), name));
  }
  chart.setAttribute("aria-label", `Root mean square of the residual stream: ${residual[0].toPrecision(3)} from the table, ${residual.at(-1).toPrecision(3)} after the last layer; largest number ${Math.max(...peaks).toPrecision(3)}`);
  table(byId("norm-table"), "Norms by layer", [["after", "word"], ["kind", "word"], ["root mean square"], ["largest number"], ["attention’s update"], ["MLP’s update"], [`token ${state.token}`]], residual.length, (layer) => [
    layer ? `layer ${layer - 1}` : "table", layer ? kindOfLayer(layer - 1) : "", residual[layer].toPrecision(5), peaks[layer].toPrecision(5),
    layer ? attention[layer - 1].toPrecision(4) : "", layer ? mlp[layer - 1].toPrecision(4) : "", own[layer].toPrecision(4)]);
}

function showSimilarities() {
  const none = "No other text was given: refembed inspect TEXT --with ANOTHER --html FILE compares.";
  byId("similarity-note").textContent = others.length ? "Cosines. A vector cut to its first numbers gets unit length again; int8 keeps a byte for a number." : none;
  byId("cosines").closest(".scrolled").hidden = byId("comparison").hidden = !others.length;
  if (!others.length) return;
  const head = element("tr", {}, element("th", { scope: "col" }, "vector kept as"), ...others.map((other) => element("th", { scope: "col", class: "text" }, element("bdi", {}, excerpt(other.text)))));
  const lines = reading.forms.map((form, index) => element("tr", {}, element("th", { scope: "row" }, formName(form)), ...others.map((_, other) => element("td", { class: "number" }, decimal(reading.similarities[other][index], 4)))));
  byId("cosines").append(element("thead", {}, head), element("tbody", {}, ...lines));
}

function excerpt(text) {
  const letters = Array.from(text.slice(0, 200).replace(/\s+/g, " "));
  return letters.length > 60 ? `${letters.slice(0, 59).join("")}…` : letters.join("");
}

// -------------------------------------------------------------------------------------------------------- two texts
function compareWith(index) {
  Object.assign(state, { other: index, left: null, right: null });
  compared.left = new Tokens(byId("left"), main, (place) => choosePair({ left: place }));
  compared.right = new Tokens(byId("right"), others[index], (place) => choosePair({ right: place }));
  showPairs();
}

function choosePair(change) {
  Object.assign(state, change);
  compared.left.select(state.left);
  compared.right.select(state.right);
  showPairs();
}

/** A block's sum of what its pairs of tokens add to the cosine. */
function cell(left, right) {
  const { cells, scale, step } = reading.comparisons[state.other];
  return numbers(cells)[Math.floor(left / step) * cells.shape[1] + Math.floor(right / step)] * scale;
}

function showPairs() {
  const other = others[state.other];
  const { cells, step, scale, rows, columns } = reading.comparisons[state.other];
  compared.left.colour(state.right === null ? numbers(rows) : Float32Array.from(main.ids, (_, place) => cell(place, state.right)));
  compared.right.colour(state.left === null ? numbers(columns) : Float32Array.from(other.ids, (_, place) => cell(state.left, place)));
  const cosine = `cosine ${decimal(reading.similarities[state.other][0], 4)}`;
  const block = step === 1 ? "" : `, with the others of its block of ${step} × ${step}`;
  const alone = (text, place, sums) => `${named(text, place)} adds ${decimal(sums[place], 5)} of the ${cosine}.`;
  byId("pair").textContent = state.left !== null && state.right !== null
    ? `${named(main, state.left)} with ${named(other, state.right)}${block} adds ${decimal(cell(state.left, state.right), 5)} of the ${cosine}.`
    : state.left !== null ? alone(main, state.left, numbers(rows))
      : state.right !== null ? alone(other, state.right, numbers(columns)) : `All pairs together: ${cosine}.`;
  const canvas = byId("pairs");
  const context = paint(canvas, cells);
  canvas.style.width = `${Math.min(640, Math.max(160, 24 * cells.shape[1]))}px`;
  canvas.style.height = `${Math.min(640, Math.max(120, 24 * cells.shape[0]))}px`;
  context.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--ink");
  context.lineWidth = 2;
  const [wide, high] = [canvas.width / cells.shape[1], canvas.height / cells.shape[0]];
  if (state.left !== null) context.strokeRect(1, Math.floor(state.left / step) * high, canvas.width - 2, high);
  if (state.right !== null) context.strokeRect(Math.floor(state.right / step) * wide, 1, wide, canvas.height - 2);
  byId("pairs-caption").textContent = `Rows are this text's tokens, columns the other's; ${step === 1 ? "a cell is a pair" : `a cell is the sum of ${step} × ${step} pairs`}. Blue adds, orange takes away. Click a cell to choose its tokens; the table has the strongest.`;
  const order = strongestPairs(state.other);
  table(byId("pair-table"), "Pairs that add or take most", [["this text", "word"], ["the other", "word"], ["adds"]], order.length, (entry) => {
    const [line, column] = [Math.floor(order[entry] / cells.shape[1]), order[entry] % cells.shape[1]];
    return [blockName(main, line, step), blockName(other, column, step), decimal(numbers(cells)[order[entry]] * scale, 5)];
  });
}

/** The cells of largest magnitude, found once for each comparison. */
function strongestPairs(index) {
  const comparison = reading.comparisons[index];
  if (!comparison.order) {
    const values = numbers(comparison.cells);
    const bar = Float32Array.from(values, Math.abs).sort().at(-Math.min(ROWS, values.length));
    const found = [];
    values.forEach((value, at) => { if (Math.abs(value) >= bar) found.push(at); });
    comparison.order = found.sort((a, b) => Math.abs(values[b]) - Math.abs(values[a])).slice(0, ROWS);
  }
  return comparison.order;
}

function blockName(text, block, step) {
  const last = Math.min((block + 1) * step, text.ids.length) - 1;
  return step === 1 ? `token ${shortName(text, block)}` : `tokens ${block * step} to ${last}`;
}

/** The cell of a picture under a click, in tokens. */
function clicked(event, rows, columns) {
  const box = event.currentTarget.getBoundingClientRect();
  const at = (offset, size, count) => Math.min(count - 1, Math.max(0, Math.floor((offset / size) * count)));
  return [at(event.clientY - box.top, box.height, rows), at(event.clientX - box.left, box.width, columns)];
}

function showLimits() {
  const step = reading.map_step;
  const all = reading.keys === tokens;
  const said = [
    `Every number comes from refembed's NumPy reference in ${reading.precision}, version ${reading.version}, the model's weights in ${reading.weights}.`,
    `Attention: of each token, layer and head ${all ? "every weight is" : `the ${reading.keys} largest weights of ${tokens} are`} in this file, in steps of 1/65,535, so at most 0.00001 off${all ? "" : "; the others' sum is stored, and shown as “not stored”"}.`,
    `The picture of a head is ${step === 1 ? "of single tokens" : `pooled: the average of ${step} × ${step} tokens`}, in 256 steps of the square root; it is to be looked at, not measured.`,
    "Shares, sizes of tokens and what a token adds to a cosine are float32; they are computed in float64 from the reference's states.",
    ...reading.comparisons.map(({ step: side, scale }, index) => `Comparison ${index + 1}: ${side === 1 ? "every pair of tokens is stored" : `pairs are summed in blocks of ${side} × ${side}`}, in steps of ${scale.toPrecision(2)}.`),
    "A share says where the vector's length comes from. It is no proof of why: a token's last state holds what it read from all others.",
    ...(reading.texts.some((text) => text.ids.length === reading.context) ? [`A text has ${reading.context} tokens, the most this model takes: if it was longer, its end was cut.`] : []),
  ];
  byId("limits-list").append(...said.map((line) => element("li", {}, line)));
}

// ------------------------------------------------------------------------------------------------------------- begin
const kinds = main.ids.map((_, place) => kind(main, place));
state.token = Math.min(main.opening, tokens - 1);
byId("model").textContent = reading.model === "default" ? "refembed’s built-in model" : reading.model;
byId("given").textContent = main.text.length > 300 ? `“${main.text.slice(0, 300)} …”` : `“${main.text}”`;
byId("facts").textContent = `${tokens} tokens, ${main.opening} of them before the text; ${reading.sliding.length} layers of ${reading.heads} heads; ${reading.dimensions} numbers a vector.`;
document.title = `${excerpt(main.text)} · read by refembed`;

const list = new Tokens(byId("tokens"), main, choose);
const compared = {};
chips(byId("layers"), "layer", reading.sliding.map((sliding, layer) => [String(layer), `layer ${layer}, ${kindOfLayer(layer)}`, sliding ? "" : "full"]), 0, (layer) => { state.layer = layer; chooseHead(); });
chips(byId("heads"), "head", Array.from({ length: reading.heads }, (_, head) => [String(head), `head ${head}`]), 0, (head) => { state.head = head; chooseHead(); });
byId("form").append(...reading.forms.map((form, index) => element("option", { value: index }, formName(form))));
byId("form").onchange = (event) => { state.form = Number(event.target.value); showShares(); showTokens(); showChosen(); };
byId("paint").onchange = showTokens;
byId("map").onclick = (event) => choose(clicked(event, tokens, tokens)[0]);
byId("other").append(...others.map((other, index) => element("option", { value: index }, `${index + 1}: ${excerpt(other.text)}`)));
byId("other").onchange = (event) => compareWith(Number(event.target.value));
byId("clear").onclick = () => choosePair({ left: null, right: null });
byId("pairs").onclick = (event) => {
  const [left, right] = clicked(event, tokens, others[state.other].ids.length);
  choosePair({ left, right });
};
matchMedia("(prefers-color-scheme: dark)").onchange = () => {
  pictures.clear();
  showMap();
  if (others.length) showPairs();
};

showShares();
showSimilarities();
showLimits();
choose(state.token);
if (others.length) compareWith(0);
