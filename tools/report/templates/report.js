"use strict";
// Charts and pictures are made when they come near the window: opening the page stays quick.
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
const json = (element) => JSON.parse(element.textContent);
const TITLE_PX = 34;
const NEAR = { rootMargin: "600px 0px" };

function whenNear(elements, act) {
  const observer = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting) {
        observer.unobserve(target);
        act(target);
      }
    }
  }, NEAR);
  elements.forEach((element) => observer.observe(element));
}

function download(url, name) {
  const link = document.createElement("a");
  link.href = url;
  link.download = `${name.replace(/[^A-Za-z0-9._-]+/g, "_")}.png`;
  link.click();
}

// Charts ---------------------------------------------------------------------------------------

function needPlotly() {
  const source = $("#plotly");
  if (!window.Plotly && source) {
    const script = document.createElement("script");
    script.textContent = source.textContent;
    document.head.append(script);
    source.remove();
  }
}

function themed(layout) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const result = {
    ...layout,
    paper_bgcolor: colour("--card"),
    plot_bgcolor: colour("--card"),
    font: { color: colour("--ink"), family: "system-ui, 'DejaVu Sans', sans-serif", size: 13 },
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
  };
  for (const name of Object.keys(layout).filter((key) => /^[xy]axis/.test(key))) {
    const lines = { gridcolor: colour("--grid"), zerolinecolor: colour("--line") };
    result[name] = { ...layout[name], ...lines, linecolor: colour("--line") };
  }
  return result;
}

function draw(plot) {
  needPlotly();
  const figure = json($(`#figure-${plot.dataset.figure}`));
  plot.source = figure.layout;
  const config = { displayModeBar: false, responsive: true };
  plot.ready = Plotly.newPlot(plot, figure.data, themed(figure.layout), config);
  if (plot.dataset.figure === "classes") plot.ready.then(sortClasses);
  const box = plot.parentElement;
  if (box.scrollHeight > box.clientHeight || box.scrollWidth > box.clientWidth) {
    box.tabIndex = 0; // arrow keys scroll it
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", "A chart that scrolls");
  }
  return plot.ready;
}

const redraw = (plot) => Plotly.react(plot, plot.data, themed(plot.source));

async function saveChart(id) {
  const plot = $(`[data-figure="${id}"]`);
  await (plot.ready || draw(plot));
  const title = $("h3", plot.closest("figure")).textContent;
  // A line on top for the title, which on the page stands outside the chart.
  const size = { width: plot.clientWidth, height: plot.clientHeight + TITLE_PX };
  const text = title.replace(/&/g, "&amp;").replace(/</g, "&lt;");
  const place = { x: 0.02, y: 1, yref: "container", yanchor: "top", pad: { t: 10 } };
  const layout = {
    ...plot.layout,
    title: { text, font: { size: 16 }, ...place },
    legend: { ...plot.layout.legend, y: 1 - TITLE_PX / size.height },
    margin: { ...plot.layout.margin, t: plot.layout.margin.t + TITLE_PX },
  };
  const options = { format: "png", scale: 2, ...size };
  download(await Plotly.toImage({ data: plot.data, layout }, options), title);
}

// Order of classes ------------------------------------------------------------------------------

const byNumber = (value) => (a, b) => value(a) - value(b);
const orders = {
  id: byNumber((row) => row.id),
  worst: byNumber((row) => row.after),
  best: byNumber((row) => -row.after),
  gained: byNumber((row) => row.before - row.after),
  lost: byNumber((row) => row.after - row.before),
  name: (a, b) => a.name.localeCompare(b.name),
};

function sortClasses() {
  const select = $("#class-order");
  if (!select) return;
  const rows = json($("#class-rows")).sort(orders[select.value]);
  const body = $("#class-table tbody");
  const lines = new Map($$("tr", body).map((line) => [line.dataset.id, line]));
  body.append(...rows.map((row) => lines.get(String(row.id))));
  const plot = $('[data-figure="classes"]');
  if (plot && plot.ready) {
    plot.source.yaxis.categoryarray = rows.map((row) => row.label);
    redraw(plot);
  }
}

// Gallery ---------------------------------------------------------------------------------------

const cards = $$(".card");
const kinds = json($("#picture-kinds"));
const words = (card, name) => {
  const shown = $$(".regions dt", card).find((term) => term.textContent === name);
  const chips = shown ? $$(".chip", shown.nextElementSibling) : [];
  return chips.map((chip) => chip.textContent.trim()).join(", ");
};
const short = { before: "before", after: kinds.before ? "after" : "prediction", truth: "truth" };
const described = (card, name) => {
  const list = short[name] ? words(card, short[name]) : "";
  return `${card.dataset.name}, ${kinds[name].caption}${list ? `: ${list}` : ""}`;
};

function showPictures(card, root = card) {
  const uris = json($(".pictures", card));
  for (const picture of $$("img", root)) {
    const name = picture.dataset.layer || "image";
    picture.src = uris[name];
    if (picture.dataset.layer) picture.alt = described(card, name);
  }
}

const value = (card, name, missing) => (name in card.dataset ? Number(card.dataset[name]) : missing);
const cardOrders = {
  worst: byNumber((card) => value(card, "after", 2)),
  best: byNumber((card) => -value(card, "after", -2)),
  lost: byNumber((card) => value(card, "gain", 2)),
  gained: byNumber((card) => -value(card, "gain", -2)),
  slowest: byNumber((card) => -value(card, "seconds", -1)),
  name: (a, b) => (a.dataset.name < b.dataset.name ? -1 : 1),
};

function arrange() {
  const form = $("#filters");
  const wanted = Object.fromEntries(new FormData(form));
  const fits = (card) =>
    ["truth", "predicted"].every((n) => !wanted[n] || card.dataset[n].split(" ").includes(wanted[n])) &&
    (!wanted.change || card.dataset.change === wanted.change);
  cards.forEach((card) => (card.hidden = !fits(card)));
  $("#cards").append(...[...cards].sort(cardOrders[wanted.order]));
  const count = cards.filter((card) => !card.hidden).length;
  $("#shown").textContent = `${count} of ${cards.length} images`;
  $("#none").hidden = count > 0;
}

// One image, large -------------------------------------------------------------------------------

let current = null;

function pictureOf(card, name) {
  const figure = document.createElement("figure");
  const stage = document.createElement("div");
  stage.className = "stage";
  stage.style.setProperty("--ratio", card.style.getPropertyValue("--ratio"));
  if (kinds[name].layer) {
    const photo = document.createElement("img");
    photo.className = "photo";
    photo.alt = "";
    stage.append(photo);
  }
  const picture = document.createElement("img");
  picture.className = kinds[name].layer ? "layer" : "plain";
  picture.dataset.layer = name;
  stage.append(picture);
  const caption = document.createElement("figcaption");
  caption.textContent = kinds[name].caption;
  figure.append(stage, caption);
  return figure;
}

function enlarge(card) {
  current = card;
  const uris = json($(".pictures", card));
  const names = Object.keys(kinds).filter((name) => name in uris);
  $("#large-name").textContent = card.dataset.name;
  $("#large-pictures").replaceChildren(...names.map((name) => pictureOf(card, name)));
  $("#large-regions").replaceChildren($(".regions", card).cloneNode(true));
  showPictures(card, $("#large-pictures"));
  if (!$("#large").open) $("#large").showModal();
}

function step(by) {
  const shown = $$(".card").filter((card) => !card.hidden && $(".enlarge", card));
  const place = shown.indexOf(current) + by;
  enlarge(shown[(place + shown.length) % shown.length]);
}

async function saveLarge() {
  const stages = $$("#large-pictures figure");
  await Promise.all($$("#large-pictures img").map((picture) => picture.decode()));
  const [gap, line] = [12, 26];
  const across = Math.min(3, stages.length);
  const first = $("img", stages[0]);
  const [width, height] = [first.naturalWidth, first.naturalHeight];
  const canvas = document.createElement("canvas");
  canvas.width = gap + across * (width + gap);
  canvas.height = line + gap + Math.ceil(stages.length / across) * (height + line + gap);
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.fillStyle = "#000";
  pen.font = "16px sans-serif";
  pen.fillText(current.dataset.name, gap, line - 6, canvas.width - 2 * gap);
  stages.forEach((figure, index) => {
    const x = gap + (index % across) * (width + gap);
    const y = line + gap + Math.floor(index / across) * (height + line + gap);
    for (const picture of $$("img", figure)) {
      pen.filter = getComputedStyle(picture).filter;
      pen.drawImage(picture, x, y, width, height);
    }
    pen.filter = "none";
    pen.fillText($("figcaption", figure).textContent, x, y + height + 18);
  });
  download(canvas.toDataURL("image/png"), current.dataset.name);
}

// The page -----------------------------------------------------------------------------------------

function setUpTheme() {
  const root = document.documentElement;
  const button = $("#theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const show = () => {
    button.textContent = isDark() ? "Light page" : "Dark page";
    for (const plot of $$(".plot")) if (plot.ready) redraw(plot);
  };
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    show();
  });
  system.addEventListener("change", show);
  show();
}

function setUpGallery() {
  const form = $("#filters");
  form.addEventListener("change", arrange);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(arrange));
  for (const slider of $$(".stage input")) {
    slider.addEventListener("input", () => {
      slider.parentElement.style.setProperty("--cut", `${slider.value}%`);
    });
  }
  for (const button of $$(".enlarge")) {
    button.addEventListener("click", () => enlarge(button.closest(".card")));
  }
  $("#previous").addEventListener("click", () => step(-1));
  $("#next").addEventListener("click", () => step(1));
  $("#save-large").addEventListener("click", saveLarge);
  $("#close").addEventListener("click", () => $("#large").close());
  $("#large").addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) step(by);
  });
  $("#large").addEventListener("close", () => $(".enlarge", current).focus());
  arrange();
  whenNear(cards, (card) => showPictures(card));
}

setUpTheme();
$$(".save").forEach((button) => button.addEventListener("click", () => saveChart(button.dataset.chart)));
if ($("#class-order")) $("#class-order").addEventListener("change", sortClasses);
if (cards.length) setUpGallery();
whenNear($$(".plot"), draw);
