"use strict";
const held = JSON.parse(document.getElementById("held").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");

function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function clear(hex, opacity) {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  return `rgba(${r}, ${g}, ${b}, ${opacity})`;
}

/* Curves: the colours are the page's own, so that they follow the scheme. */

function themed(axis) {
  const line = { gridcolor: css("--rule"), zerolinecolor: css("--rule"), linecolor: css("--soft"), tickcolor: css("--soft") };
  return { ...axis, ...line, showline: true, ticks: "outside", ticklen: 4, automargin: true, zeroline: false,
    title: { ...axis.title, font: { size: 13, color: css("--soft") }, standoff: 8 } };
}

function layout(plot) {
  const panel = held.panels[plot.id];
  const beside = [...plot.closest(".panels, .whole").querySelectorAll(".plot")].map(({ id }) => held.panels[id]);
  const names = Math.max(...beside.map(({ traces }) => traces.filter((trace) => trace.showlegend).length));
  const made = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
    font: { family: css("--sans"), size: 13, color: css("--ink") }, margin: { l: 52, r: 14, t: names > 4 ? 70 : 48, b: 48 }, // the same beside one another
    legend: { orientation: "h", xref: "container", x: 0, yref: "container", y: 1, xanchor: "left", yanchor: "top", font: { size: 13 }, itemwidth: 30, tracegroupgap: 0,
      bgcolor: "rgba(0,0,0,0)" },
    hoverlabel: { bgcolor: css("--paper"), bordercolor: css("--soft"), font: { color: css("--ink"), family: css("--sans") } },
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", // a finger scrolls the page
  };
  for (const [name, axis] of Object.entries(panel.layout)) made[name] = themed(axis);
  return made;
}

function coloured(trace) {
  const { colour, band } = trace.meta;
  if (band !== undefined) return { ...trace, fillcolor: clear(css(`--c${band}`), 0.16) };
  return { ...trace, line: { ...trace.line, color: css(`--c${colour}`) } };
}

const plots = [...document.querySelectorAll(".plot")];
for (const plot of plots) {
  const panel = held.panels[plot.id];
  Plotly.newPlot(plot, panel.traces.map(coloured), layout(plot), { displayModeBar: false, responsive: true });
}

dark.addEventListener("change", () => {
  for (const plot of plots) {
    const panel = held.panels[plot.id];
    const fresh = layout(plot);
    for (const name of Object.keys(panel.layout)) { // what the reader has zoomed to stays
      fresh[name] = { ...fresh[name], range: plot.layout[name].range, autorange: plot.layout[name].autorange };
    }
    Plotly.react(plot, plot.data.map((trace) => coloured(trace)), fresh);
  }
});

for (const button of document.querySelectorAll("[data-zoom]")) {
  button.addEventListener("click", () => {
    const part = button.closest(".curves");
    for (const other of part.querySelectorAll("[data-zoom]")) other.setAttribute("aria-pressed", other === button);
    for (const plot of part.querySelectorAll(".plot")) {
      const { x, y } = held.panels[plot.id].zooms[button.dataset.zoom];
      Plotly.relayout(plot, { "xaxis.range": [...x], "yaxis.range": [...y] });
    }
  });
}

/* Tables sort by the value of a cell; what has none stays last. */

function order(a, b, number) {
  if (a === "" || b === "") return a === b ? 0 : a === "" ? 1 : -1;
  return number ? Number(a) - Number(b) : a.localeCompare(b);
}

for (const button of document.querySelectorAll(".data thead button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th");
    const body = heading.closest("table").tBodies[0];
    const down = heading.getAttribute("aria-sort") === "ascending";
    for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.cells[heading.cellIndex].dataset.value;
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      const found = order(x, y, heading.classList.contains("number"));
      return down && x !== "" && y !== "" ? -found : found;
    });
    body.append(...rows);
  });
}

/* One run: text is set as text, so that no name can be markup. */

function make(tag, text = "", name = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  if (name) element.className = name;
  return element;
}

const percent = (value, digits = 2) => (value === null ? "–" : `${(100 * value).toFixed(digits)} %`);

function confusion(run) {
  const table = make("table", "", "confusion");
  const most = Math.max(1, ...run.confusion.flatMap((row, i) => row.filter((_, j) => j !== i)));
  const head = table.createTHead().insertRow();
  head.append(make("td", ""));
  for (const name of run.classes) {
    const heading = make("th");
    heading.scope = "col";
    heading.append(make("span", name));
    head.append(heading);
  }
  const body = table.createTBody();
  run.confusion.forEach((counts, i) => {
    const row = body.insertRow();
    const heading = make("th", run.classes[i]);
    heading.scope = "row";
    row.append(heading);
    counts.forEach((count, j) => {
      const cell = make("td", count, i === j ? "right" : count ? "" : "none");
      cell.title = i === j ? `${run.classes[i]}: ${count} right` : `${run.classes[i]} taken for ${run.classes[j]}: ${count}`;
      if (i !== j && count) cell.style.background = `rgba(${css("--tint")}, ${0.08 + 0.62 * Math.sqrt(count / most)})`;
      row.append(cell);
    });
  });
  return table;
}

function shares(run) {
  const most = Math.max(0.01, ...run.class_errors.map((error) => error ?? 0));
  return run.classes.flatMap((name, i) => {
    const bar = make("i");
    bar.style.width = `${(100 * (run.class_errors[i] ?? 0)) / most}%`;
    return [make("span", name), bar, make("span", percent(run.class_errors[i], 1))];
  });
}

function picture(mistake) {
  const item = make("li");
  const figure = make("figure");
  const image = make("img");
  image.src = mistake.picture;
  image.width = image.height = 32;
  image.alt = `a ${mistake.true} taken for a ${mistake.taken}`;
  const text = make("figcaption");
  const where = mistake.index >= 0 ? `image ${mistake.index} of its part` : "";
  text.append(make("b", mistake.taken), make("span", `is ${mistake.true}`), make("span", percent(mistake.probability, 1)));
  figure.title = where;
  figure.append(image, text);
  item.append(figure);
  return item;
}

const pick = document.getElementById("run");

function show() {
  const run = held.runs[pick.value];
  document.getElementById("confusion").replaceChildren(confusion(run));
  document.getElementById("shares").replaceChildren(...shares(run));
  const facts = [
    ["error", `${percent(run.error)} (${percent(run.interval[0])} to ${percent(run.interval[1])})`],
    ["expected calibration error", percent(run.ece)],
    ["negative log-likelihood", run.nll.toFixed(4)],
  ];
  document.getElementById("facts").replaceChildren(
    ...facts.map(([name, value]) => {
      const pair = make("div");
      pair.append(make("dt", name), make("dd", value));
      return pair;
    }),
  );
  const mistakes = held.mistakes[run.group];
  document.getElementById("mistakes").hidden = !mistakes;
  if (!mistakes) return;
  document.getElementById("whose").textContent = `${run.network}, seed ${mistakes.seed}, the run nearest the mean; in bold what each was taken for, and how surely`;
  document.getElementById("pictures").replaceChildren(...mistakes.pictures.map(picture));
}

if (pick) {
  pick.addEventListener("change", show);
  dark.addEventListener("change", show);
  show();
}
