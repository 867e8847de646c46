"use strict";
(() => {
const { cases, strips, stops, curves, labels } = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const still = matchMedia("(prefers-reduced-motion: reduce)");

// A new element: element("td", {className: "mean"}, "0.5"). Text is never read as HTML.
function element(tag, properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
}

function format(name, value, digits = 3) {
    if (value === null || value === undefined) return "n/a";
    const unit = labels[name] ? labels[name][1] : "";
    return unit ? `${value.toFixed(1)} ${unit}` : value.toFixed(digits);
}

// ---------------------------------------------------------------- curves

function svg(parent, tag, attributes, text = "") {
    const made = document.createElementNS(parent.namespaceURI, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.textContent = text;
    parent.append(made);
    return made;
}

// Some round numbers in equal steps, from at most `low` to at least `high`.
function ticks(low, high, most = 4) {
    if (high - low < 1e-9) [low, high] = [low - 0.05, high + 0.05];
    const power = 10 ** Math.floor(Math.log10((high - low) / most));
    const step = power * [1, 2, 5, 10].find((m) => (high - low) / (power * m) <= most * 1.0001);
    const first = Math.floor(low / step + 1e-9), last = Math.ceil(high / step - 1e-9);
    return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step);
}

function logTicks(low, high) {
    const decades = [];
    for (let k = Math.floor(Math.log10(low)); 10 ** k <= high; k++) decades.push(10 ** k);
    const fine = decades.flatMap((decade) => [decade, 2 * decade, 5 * decade]);
    return (decades.length > 3 ? decades : fine).filter((tick) => low <= tick && tick <= high);
}

const brief = (value) => Number(value.toPrecision(4)).toLocaleString("en", { maximumSignificantDigits: 4 });
const percent = (value) => `${Math.round(100 * value)}%`;

// The axes span x from 52 to 444 and y from 250 to 18, as in the template.
function drawCurve(chart) {
    const name = chart.dataset.curve, points = curves[name];
    const xs = points.map((point) => point[0]), ys = points.map((point) => point[1]);
    const lowest = Math.min(...ys), highest = Math.max(...ys);
    const log = name === "loss" && lowest > 0 && highest >= 5 * lowest;
    const marks = log ? logTicks(lowest / 1.1, highest * 1.1) : ticks(lowest, highest);
    const scale = log ? Math.log : (value) => value;
    const low = scale(log ? lowest / 1.1 : marks[0]);
    const high = scale(log ? highest * 1.1 : marks[marks.length - 1]);
    let [left, right] = [xs[0], xs[xs.length - 1]];
    if (left === right) right = left + 1;
    const px = (x) => 52 + 392 * (x - left) / (right - left);
    const py = (y) => 250 - 232 * (scale(y) - low) / (high - low);
    const label = name === "coverage" ? percent : brief;
    for (const mark of marks) {
        svg(chart, "line", { class: "grid", x1: 52, x2: 444, y1: py(mark), y2: py(mark) });
        svg(chart, "text", { x: 46, y: py(mark) + 4, "text-anchor": "end" }, brief(mark));
    }
    for (const mark of ticks(left, right, 6).filter((x) => left <= x && x <= right * (1 + 1e-9))) {
        svg(chart, "text", { x: px(mark), y: 270, "text-anchor": "middle" }, label(mark));
    }
    svg(chart, "text", { x: 248, y: 292, "text-anchor": "middle" }, chart.dataset.x);
    const side = { x: 12, y: 134, "text-anchor": "middle", transform: "rotate(-90 12 134)" };
    svg(chart, "text", side, chart.dataset.y + (log ? ", logarithmic" : ""));
    const path = points.map(([x, y]) => `${px(x).toFixed(1)},${py(y).toFixed(1)}`).join(" ");
    svg(chart, "polyline", { class: "line", points: path });
    const quiet = points.length > 40 ? " quiet" : "";
    for (const [x, y] of points) {
        const dot = svg(chart, "circle", { class: "dot" + quiet, cx: px(x), cy: py(y), r: 4 });
        const where = name === "coverage" ? `${percent(x)} kept` : `step ${brief(x)}`;
        dot.dataset.tip = `${where}: ${chart.dataset.y} ${y.toPrecision(4)}`;
    }
    if (name === "validation") {
        const best = points[ys.indexOf(highest)];
        const anchor = px(best[0]) > 248 ? "end" : "start";
        const text = `best ${highest.toFixed(3)}`;
        svg(chart, "text", { class: "mark-label", x: px(best[0]), y: py(highest) - 9, "text-anchor": anchor }, text);
    }
}

// Tooltips: by mouse, or in a focused chart by its arrow keys.
const tip = byId("tip");
let active = null;

function showTip(target) {
    if (active) active.classList.remove("active");
    active = target;
    tip.hidden = !target;
    if (!target) return;
    target.classList.add("active");
    tip.textContent = target.dataset.tip;
    const box = target.getBoundingClientRect(), size = tip.getBoundingClientRect();
    const x = Math.min(Math.max(4, box.x + box.width / 2 - size.width / 2), innerWidth - size.width - 4);
    tip.style.left = `${x}px`;
    tip.style.top = `${Math.max(4, box.y - size.height - 8)}px`;
}

all("svg[data-curve]").forEach(drawCurve);
all("svg.chart title").forEach((title) => {
    title.parentNode.dataset.tip = title.textContent;
    title.remove();
});
for (const chart of all("svg.chart")) {
    chart.setAttribute("aria-label", chart.getAttribute("aria-label") + "; arrow keys read its values");
    chart.addEventListener("pointerover", (event) => showTip(event.target.closest("[data-tip]")));
    chart.addEventListener("pointerleave", () => showTip(null));
    chart.addEventListener("blur", () => showTip(null));
    chart.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (event.key === "Escape") showTip(null);
        if (!step) return;
        const marks = all("[data-tip]:not(.empty)", chart);
        const place = marks.indexOf(active);
        showTip(marks[place < 0 ? (step > 0 ? 0 : marks.length - 1) : Math.min(Math.max(place + step, 0), marks.length - 1)]);
        event.preventDefault();
    });
}
addEventListener("scroll", () => active && showTip(active), { passive: true });

// ---------------------------------------------------------------- denoising

const caseOf = new Map(cases.map((one) => [one.id, one]));

// One strip: a stage, which shows a frame or plays all of them, and the film of all frames.
function drawStrip(strip, heading) {
    const noisy = element("img", { alt: "noisy mask" }), clean = element("img", { alt: "expected mask" });
    const time = element("output"), last = strip.frames.length - 1;
    const play = element("button", { type: "button", className: "play" }, "Play");
    const range = element("input", { type: "range", min: 0, max: last, step: 1, value: last });
    range.setAttribute("aria-label", `Frame of ${strip.id}`);
    const figure = (image, text) => element("figure", {}, image, element("figcaption", {}, text));
    const pictures = element("div", { className: "pictures" });
    const own = caseOf.get(strip.id);
    if (own && heading) pictures.append(figure(element("img", { src: own.image, alt: "image" }), "image"));
    pictures.append(figure(noisy, "noisy mask"), figure(clean, "expected mask"));
    const film = element("div", { className: "film" });
    strip.frames.forEach(([t, x, start], i) => {
        const frame = element("button", { type: "button", onclick: () => { pause(); show(i); } },
            element("span", {}, `t = ${t}`),
            element("img", { src: x, alt: "", loading: "lazy" }),
            element("img", { src: start, alt: "", loading: "lazy" }));
        frame.setAttribute("aria-label", `t = ${t}`);
        film.append(frame);
    });
    let timer = null;

    function show(i) {
        range.value = i;
        const [t, x, start] = strip.frames[i];
        noisy.src = x;
        clean.src = start;
        time.value = `t = ${t}`;
        range.setAttribute("aria-valuetext", `t = ${t}`);
        [...film.children].forEach((frame, j) => frame.setAttribute("aria-pressed", i === j));
        const frame = film.children[i]; // Scrolls the film alone, not the page.
        if (frame.offsetLeft < film.scrollLeft + film.offsetLeft || frame.offsetLeft + frame.offsetWidth > film.scrollLeft + film.offsetLeft + film.clientWidth) {
            film.scrollLeft = frame.offsetLeft - film.offsetLeft - 8;
        }
    }

    function pause() {
        clearInterval(timer);
        timer = null;
        play.textContent = "Play";
    }

    play.addEventListener("click", () => {
        if (timer) return pause();
        if (Number(range.value) >= last) show(0);
        play.textContent = "Pause";
        const pace = Math.max(still.matches ? 500 : 120, Math.min(700, 4000 / (last + 1)));
        timer = setInterval(() => {
            show(Number(range.value) + 1);
            if (Number(range.value) >= last || !range.isConnected) pause();
        }, pace);
    });
    range.addEventListener("input", () => { pause(); show(Number(range.value)); });
    const controls = element("div", { className: "controls" }, play, range, time);
    const stage = element("div", { className: "stage" }, pictures, controls);
    const box = element("div", { className: heading ? "strip card" : "strip" },
        element("h3", {}, heading ? strip.id : "Denoising"), element("div", {}, stage, film));
    show(last); // Not in the page yet, so that the film still starts at its first frame.
    return box;
}

if (byId("strips")) byId("strips").append(...strips.map((strip) => drawStrip(strip, true)));
if (!byId("cards")) return;

// ---------------------------------------------------------------- gallery

const gallery = byId("cards"), viewer = byId("viewer"), faders = all(".fade input");
const names = new Intl.Collator("en", { numeric: true });
const hasScores = cases.some((one) => one.scores);
const stripOf = new Map(strips.map((strip) => [strip.id, strip]));
const iou = (one) => one.scores ? one.scores.iou : null;
const words = (text) => text.replaceAll("_", " ");

function layers(one, described) {
    return stops.map((stop, i) => one[stop] && element("img", {
        src: one[stop], className: `layer-${i}`, alt: described ? stop : "", decoding: "async", draggable: false,
    })).filter(Boolean);
}

// Every layer covers those below it, so that the upper one of two fades in over the lower.
function fade(value) {
    value = Math.min(Math.max(Number(value), 0), stops.length - 1);
    for (const root of [gallery, viewer]) {
        stops.forEach((_, i) => root.style.setProperty(`--layer-${i}`, Math.min(Math.max(value - i + 1, 0), 1)));
    }
    const low = Math.min(Math.floor(value), stops.length - 2), share = value - low;
    const text = share === 0 ? stops[low] : share === 1 ? stops[low + 1]
        : `${percent(share)} from ${stops[low]} to ${stops[low + 1]}`;
    for (const range of faders) {
        range.value = value;
        range.setAttribute("aria-valuetext", text);
    }
    for (const button of all(".stops button")) {
        button.setAttribute("aria-pressed", Math.abs(Number(button.dataset.stop) - value) < 0.5);
    }
}

// Cards get their pictures when they come near the window.
const near = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) fill(entry.target);
}, { rootMargin: "800px 0px" });

function fill(item) {
    near.unobserve(item);
    const box = item.querySelector(".layers");
    if (box && !box.childElementCount) box.append(...layers(item.case, false));
}

const badge = () => element("span", { className: "badge", title: "with its denoising", ariaHidden: "true" }, "\u25b6");

// Long names lose their middle, as their ends tell them apart.
function shorten(id) {
    const letters = Array.from(id);
    return element("span", { className: "name" }, element("span", {}, letters.slice(0, -9).join("")),
        element("span", {}, letters.slice(-9).join("")));
}

function makeCard(one) {
    const facts = [];
    if (one.disagreement !== null) facts.push(`disagreement ${one.disagreement.toFixed(3)}`);
    const score = one.scores ? `IoU ${format("iou", iou(one))}` : "";
    const tile = element("button", { type: "button", className: "tile", title: one.id },
        element("span", { className: "layers" }), ...(stripOf.has(one.id) ? [badge()] : []),
        element("span", { className: "facts" }, shorten(one.id),
            ...(score ? [element("b", {}, score)] : []), ...(facts.length ? [element("small", {}, facts.join(", "))] : [])));
    tile.setAttribute("aria-label", [one.id, score, ...facts, stripOf.has(one.id) && "with denoising"].filter(Boolean).join(", "));
    tile.addEventListener("click", () => openViewer(one));
    const item = element("li", {}, tile);
    item.case = one;
    near.observe(item);
    return item;
}

const items = new Map(cases.map((one) => [one, makeCard(one)]));
let shown = [];

// Missing values come last.
const by = (value, sign) => (a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === null || y === null) return (x === null) - (y === null) || names.compare(a.id, b.id);
    return sign * (x - y) || names.compare(a.id, b.id);
};
const orders = {
    worst: by(iou, 1),
    best: by(iou, -1),
    uncertain: by((one) => one.disagreement, -1),
    name: (a, b) => names.compare(a.id, b.id),
};

function update() {
    const wanted = all("select.filter").filter((select) => select.value);
    const text = byId("search").value.trim().toLowerCase(), group = byId("group") ? byId("group").value : "";
    shown = cases.filter((one) => one.id.toLowerCase().includes(text)
        && wanted.every((select) => one.conditions && one.conditions[select.dataset.condition] === select.value));
    shown.sort(orders[byId("sort").value]);
    let list = shown.map((one) => items.get(one));
    if (group) {
        const options = [...all("select.filter").find((select) => select.dataset.condition === group).options];
        const values = [...options.slice(1).map((option) => option.value), undefined];
        const parts = values.map((value) => [value, shown.filter((one) => (one.conditions || {})[group] === value)]);
        list = parts.filter(([, members]) => members.length).flatMap(([value, members]) => {
            return [heading(group, value, members), ...members.map((one) => items.get(one))];
        });
        shown = parts.flatMap(([, members]) => members);
    }
    gallery.replaceChildren(...list);
    const narrowed = Boolean(text || wanted.length);
    byId("count").value = `${shown.length} of ${cases.length} images` + (hasScores && shown.length ? `, ${meanOf(shown)}` : "");
    byId("reset").hidden = !narrowed;
    for (const select of all(".filters select")) select.classList.toggle("changed", select.selectedIndex > 0 && select.id !== "sort");
}

function meanOf(members) {
    const values = members.map(iou).filter((value) => value !== null);
    return values.length ? `mean IoU ${(values.reduce((a, b) => a + b) / values.length).toFixed(3)}` : "no IoU";
}

function heading(group, value, members) {
    const count = `${members.length} image${members.length === 1 ? "" : "s"}, ${meanOf(members)}`;
    const title = value === undefined ? "not known" : `${words(group)}: ${value}`;
    return element("li", { className: "heading" }, element("h3", {}, title, element("span", {}, ` (${count})`)));
}

// How many cards are in the first row, by where they are.
function columns() {
    const cards = all("li:not(.heading)", gallery);
    const next = cards.findIndex((card) => card.offsetTop !== cards[0].offsetTop);
    return next < 0 ? cards.length : next;
}

function focusCard(one) {
    const item = items.get(one);
    if (item.isConnected) item.firstChild.focus();
}

gallery.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const place = shown.findIndex((one) => items.get(one).contains(event.target));
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns(), Home: -place, End: shown.length - 1 - place };
    if (place < 0 || !(event.key in step)) return;
    const next = place + step[event.key];
    if (shown[next]) focusCard(shown[next]);
    event.preventDefault();
});

// ---------------------------------------------------------------- viewer

let current = null;

// The single masks, one beside the other.
function drawSamples(samples) {
    if (!samples.length) return [];
    const masks = samples.map((src, i) => element("img", { src, alt: `sample ${i + 1}`, title: `sample ${i + 1}` }));
    return [element("h3", {}, `${masks.length} masks that experts might draw`), element("div", { className: "samples" }, ...masks)];
}

function openViewer(one) {
    current = one;
    const place = shown.indexOf(one);
    byId("viewer-id").textContent = one.id;
    byId("viewer-place").textContent = `${place + 1} of ${shown.length}`;
    byId("viewer-layers").replaceChildren(...layers(one, true));
    const rows = Object.keys(labels).filter((name) => one.scores && name in one.scores)
        .map((name) => [labels[name][0], format(name, one.scores[name], 4)]);
    if (one.disagreement !== null) rows.push(["Disagreement", one.disagreement.toFixed(4)]);
    const cells = ([label, value]) => element("tr", {}, element("th", { scope: "row" }, label), element("td", {}, value));
    const chips = Object.entries(one.conditions || {}).map(([condition, value]) => element("span", {}, `${words(condition)}: ${value}`));
    byId("viewer-facts").replaceChildren(element("table", {}, element("tbody", {}, ...rows.map(cells))),
        element("div", { className: "chips" }, ...chips));
    byId("viewer-samples").replaceChildren(...drawSamples(one.samples));
    const strip = stripOf.get(one.id);
    byId("viewer-strip").replaceChildren(...(strip ? [drawStrip(strip, false)] : []));
    if (!viewer.open) {
        viewer.showModal();
        viewer.focus();
    }
}

function move(step) {
    openViewer(shown[(shown.indexOf(current) + step + shown.length) % shown.length]);
}

viewer.addEventListener("close", () => focusCard(current));
viewer.addEventListener("click", (event) => {
    const box = viewer.getBoundingClientRect(); // The backdrop is the dialog itself.
    const outside = event.clientX < box.left || event.clientX > box.right || event.clientY < box.top || event.clientY > box.bottom;
    if (event.target === viewer && outside) viewer.close();
});
byId("previous").addEventListener("click", () => move(-1));
byId("next").addEventListener("click", () => move(1));
byId("close").addEventListener("click", () => viewer.close());
let touch = null;
byId("viewer-layers").addEventListener("pointerdown", (event) => { touch = event.pointerType === "mouse" ? null : event.clientX; });
byId("viewer-layers").addEventListener("pointerup", (event) => {
    const way = touch === null ? 0 : event.clientX - touch;
    if (Math.abs(way) > 50) move(way < 0 ? 1 : -1);
});

addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const field = event.target.closest && event.target.closest("select, input");
    if (/^[1-9]$/.test(event.key) && event.key <= stops.length && !(field && field.type !== "range")) {
        fade(event.key - 1);
        event.preventDefault();
    } else if (viewer.open && !field && (event.key === "ArrowLeft" || event.key === "ArrowRight")) {
        move(event.key === "ArrowLeft" ? -1 : 1);
        event.preventDefault();
    }
});

// ---------------------------------------------------------------- controls

for (const range of faders) range.addEventListener("input", () => fade(range.value));
for (const button of all(".stops button")) button.addEventListener("click", () => fade(button.dataset.stop));
for (const select of all(".filters select")) select.addEventListener("change", update);
byId("search").addEventListener("input", update);
byId("reset").addEventListener("click", () => {
    byId("search").value = "";
    for (const select of all("select.filter")) select.value = "";
    update();
    byId("search").focus();
});
for (const button of all("button[data-condition]")) {
    button.addEventListener("click", () => {
        for (const select of all("select.filter")) {
            select.value = select.dataset.condition === button.dataset.condition ? button.dataset.value : "";
        }
        byId("search").value = "";
        update();
        byId("gallery").scrollIntoView();
        if (shown.length) items.get(shown[0]).firstChild.focus({ preventScroll: true });
    });
}
const narrow = matchMedia("(max-width: 52rem)");
const fold = () => { document.querySelector(".filters").open = !narrow.matches; };
narrow.addEventListener("change", fold);
fold();
addEventListener("beforeprint", () => items.forEach(fill));
fade(stops.indexOf("prediction"));
update();
})();
