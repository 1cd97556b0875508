"use strict";
(async () => {
  const find = (selector) => document.querySelector(selector);
  const all = (selector) => document.querySelectorAll(selector);
  const data = await unpack(find("#data").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const MARKS = { "1": ["better", "▲ "], "-1": ["worse", "▼ "], "0": ["", ""] };
  const keyAt = new Map(data.keys.map((key, index) => [key.slice(0, 3).join("\0"), index]));
  const names = data.engines.map((engine) => engine.name);
  const haystacks = data.engines.map((engine) =>
    [engine.name, engine.recipe, engine.runtime, engine.method, engine.widths, engine.towers, engine.simulated ? "simulated" : "deployed"].join(" ").toLowerCase());
  let shown = data.engines.map((_, index) => index);

  async function unpack(text) {
    const stream = new DecompressionStream("gzip");
    const writer = stream.writable.getWriter();
    writer.write(Uint8Array.from(atob(text.trim()), (char) => char.charCodeAt(0)));
    writer.close();
    return JSON.parse(await new Response(stream.readable).text());
  }

  // --- Numbers ---------------------------------------------------------------------------------------------------

  function cell(engine, key) {
    const columns = data.measured[engine];
    columns.at ??= new Map(columns.key.map((one, position) => [one, position]));
    const at = columns.at.get(key);
    if (at === undefined) return null;
    const found = { key, n: columns.n[at] || data.keys[key][6] };
    for (const name of ["judged", "survives", "value", "low", "high", "delta", "delta_low", "delta_high", "p"]) found[name] = columns[name][at];
    return found;
  }

  function valueOf(engine, view, group, metric) {
    const key = keyAt.get([view, group, metric].join("\0"));
    return key === undefined ? null : cell(engine, key);
  }

  function unitOf(key) {
    const [, , metric, , unit] = data.keys[key];
    if (metric === "cosine") return { factor: 1, digits: 4, format: ".4f" };
    return unit === "fraction" ? { factor: 100, digits: 1, format: ".1%" } : { factor: 1, digits: 3, format: ".3~f" };
  }

  function number(value, { factor, digits }, sign = false) {
    if (value === null || value === undefined) return "–";
    const text = (factor * value).toFixed(digits);
    const zero = Number(text) === 0;
    return (sign && !zero && value > 0 ? "+" : "") + (zero ? text.replace("-", "") : text).replace("-", "−");
  }

  function span(found, low, high, sign = false) {
    const unit = unitOf(found.key);
    return `[${number(found[low], unit, sign)}, ${number(found[high], unit, sign)}]`;
  }

  function amount(found) {
    const interval = found.low === null ? "" : " " + span(found, "low", "high");
    return number(found.value, unitOf(found.key)) + interval;
  }

  function titleOf(key) {
    const [, group, , title] = data.keys[key];
    return group ? `${title} (${group})` : title;
  }

  // --- Elements: everything that a user or a data set named goes through textContent --------------------------------

  function make(tag, given = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(given)) {
      if (name in element) element[name] = value; else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }

  function tableOf(label, headers, rows, sort) {
    const head = make("tr", {}, ...headers.map((header, column) => {
      const title = sort ? make("button", { type: "button", title: "Sort" }, header) : header;
      const th = make("th", { scope: "col" }, title);
      if (sort) {
        if (sort.column === column) th.setAttribute("aria-sort", sort.down ? "descending" : "ascending");
        title.addEventListener("click", () => sort.by(column));
      }
      return th;
    }));
    const body = rows.map((cells) => make("tr", {}, ...cells.map((one, column) => {
      if (one instanceof HTMLElement) return one;
      return column ? make("td", {}, one) : make("th", { scope: "row" }, make("bdi", {}, one));
    })));
    const table = make("table", {}, make("caption", {}, label), make("thead", {}, head), make("tbody", {}, ...body));
    return make("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: label }, table);
  }

  function measuredCell(found) {
    if (!found) return make("td");
    const [verdict, mark] = MARKS[found.judged];
    const td = make("td", { className: verdict, title: `n = ${found.n}${found.p === null ? "" : `, p = ${found.p}`}` });
    td.append(number(found.value, unitOf(found.key)));
    if (found.low !== null) td.append(make("small", {}, span(found, "low", "high")));
    if (found.delta !== null && found.delta_low !== null) {
      const text = `${mark}${number(found.delta, unitOf(found.key), true)} ${span(found, "delta_low", "delta_high", true)}${found.survives ? " ◆" : ""}`;
      td.append(make("small", { className: "delta" }, text));
    }
    return td;
  }

  function drawTable(element) {
    const { label, columns } = data.tables[Number(element.dataset.table)];
    let rows = shown.map((engine) => [engine, columns.map(([, key]) => cell(engine, key))]).filter(([, cells]) => cells.some(Boolean));
    const state = element.sorting ?? { column: null, down: true };
    if (state.column !== null) {
      const order = ([engine, cells]) => (state.column === 0 ? engine : cells[state.column - 1]?.value ?? -Infinity);
      rows = rows.sort((a, b) => (order(a) - order(b)) * (state.down ? -1 : 1));
    }
    const by = (column) => {
      element.sorting = { column, down: state.column === column ? !state.down : true };
      drawTable(element);
      element.querySelectorAll("thead button")[column].focus();
    };
    const body = rows.map(([engine, cells]) => [names[engine], ...cells.map(measuredCell)]);
    element.replaceChildren(tableOf(label, ["engine", ...columns.map(([title]) => title)], body, { ...state, by }));
  }

  // --- Charts ------------------------------------------------------------------------------------------------------

  const nothing = () => make("p", { className: "quiet" }, "No engine of this choice was measured here.");

  async function embed(element, name, rows, places = {}, { line, ...size } = {}) {
    element.embedded?.finalize();
    element.embedded = null;
    if (!rows.length) return element.replaceChildren(nothing());
    let text = JSON.stringify(data.charts[name]);
    for (const [place, title] of Object.entries(places)) text = text.replaceAll(`"${place}"`, () => [title].flat().map((one) => JSON.stringify(one)).join());
    // Legends in as many columns as the window has room for.
    const room = Math.max(1, Math.floor((element.clientWidth || 600) / 200));
    text = text.replace(/"columns": ?(\d+)/g, (_, columns) => `"columns":${Math.min(Number(columns), room)}`);
    const spec = { ...JSON.parse(text), ...size, datasets: { rows, line: line ?? [] }, description: element.getAttribute("aria-label") };
    const theme = dark.matches ? "dark" : undefined;
    const grey = theme ? "#9aa4b1" : "#5a6370";
    const config = { background: "transparent", view: { stroke: null }, font: "system-ui, sans-serif", axis: { gridColor: theme ? "#2b313a" : "#e3e6eb" },
      legend: { symbolBaseFillColor: grey, symbolBaseStrokeColor: grey } };
    // Errors alone are logged: a layer without rows (no front, no reference) is no fault.
    element.embedded = await window.vegaEmbed(element, spec, { actions: false, renderer: "svg", logLevel: 1, theme, config, tooltip: { theme: theme ?? "light" }, loader: { target: "_self" } });
  }

  function engineRow(engine) {
    const { name, recipe, runtime, method, widths, towers, simulated } = data.engines[engine];
    return { engine: name, recipe: recipe + (simulated ? " (simulated)" : ""), runtime, method, widths, towers };
  }

  const stateOf = (engine, view) => {
    const found = engine < 0 ? null : valueOf(engine, view, "", "confidence_gap");
    if (!found || found.low === null) return null;
    return found.low > 0 ? "overconfident" : found.high < 0 ? "underconfident" : "";
  };

  function tradeRows() {
    const key = Number(find("#trade-metric").value);
    const cost = data.costs[Number(find("#cost").value)];
    const up = data.keys[key][5];
    const rows = [];
    for (const engine of shown) {
      const found = cell(engine, key), spent = cost.values[engine];
      if (!found || found.value === null || !spent || data.engines[engine].simulated) continue;
      const costs = `${spent[0]}${spent[1] === spent[2] ? "" : ` [${spent[1]}, ${spent[2]}]`}`;
      const about = engineRow(engine);
      rows.push({ ...about, kind: about.recipe, value: found.value, low: found.low, high: found.high, cost: spent[0], cost_low: spent[1], cost_high: spent[2],
        costs, metric: amount(found), href: `#bundle-${engine}`, text: `${about.engine}: ${titleOf(key)} ${amount(found)}, ${cost.title} ${costs}` });
    }
    // A few points bear their names; of many they would lie on each other.
    [...rows].sort((a, b) => a.cost - b.cost).forEach((row, index) => Object.assign(row, { name: rows.length <= 10 ? row.engine : "", above: index % 2 === 0 }));
    const beats = (a, b) => a.cost <= b.cost && (up ? a.value >= b.value : a.value <= b.value) && (a.cost < b.cost || a.value !== b.value);
    for (const row of rows) {
      row.front = up !== null && !rows.some((other) => other.runtime === row.runtime && beats(other, row));
      row.Pareto = row.front ? "on the front" : "";
    }
    return { rows, key, cost };
  }

  function bitsRows() {
    const key = Number(find("#bits-metric").value), view = data.keys[key][0];
    const sets = new Map();
    // The dashed line stays whatever is filtered.
    for (const engine of new Set([...shown, ...shown.map((one) => data.engines[one].reference).filter((one) => one >= 0)])) {
      const about = data.engines[engine], found = cell(engine, key);
      if (about.twin || !found || found.value === null) continue;
      const base = about.reference === engine;
      if (!base && !about.bits) continue;
      const state = stateOf(about.reference, view);
      const row = { ...engineRow(engine), base, bits: about.bits, value: found.value, low: found.low, high: found.high, metric: amount(found),
        text: `${about.name}, ${about.widths}, ${about.method}: ${titleOf(key)} ${amount(found)}` };
      sets.set(state, [...(sets.get(state) ?? []), row]);
    }
    // A reference alone has no bits to be drawn over.
    return { sets: [...sets].filter(([, rows]) => rows.some((row) => !row.base)), key };
  }

  const stateTitle = (state) => (state ? `References that are ${state} here` : state === null ? "All engines" : "References neither over- nor underconfident beyond the interval");

  const charts = {
    trade_off(element) {
      const { rows, key, cost } = tradeRows();
      return embed(element, "trade_off", rows, { COST: `${cost.title}, less is better`, VALUE: titleOf(key), FORMAT: unitOf(key).format });
    },
    async bits(element) {
      const { sets, key } = bitsRows();
      element.replaceChildren(...(sets.length ? [] : [nothing()]));
      for (const [state, rows] of sets) {
        const chart = make("div", { className: "chart", ariaLabel: `${titleOf(key)} by bits: ${stateTitle(state)}` });
        element.append(make("figure", { className: "wide" }, make("figcaption", { className: "quiet" }, stateTitle(state)), chart));
        await embed(chart, "bits", rows, { VALUE: titleOf(key), FORMAT: unitOf(key).format });
      }
    },
    severity(element) {
      const view = element.dataset.view, rows = [];
      for (const engine of shown) {
        const clean = valueOf(engine, view, "", "clean_acc1"), sums = new Map();
        for (const key of severityKeys(view)) {
          const found = cell(engine, key);
          const severity = data.keys[key][9];
          if (found && found.value !== null) sums.set(severity, [...(sums.get(severity) ?? []), found.value]);
        }
        if (clean && sums.size) rows.push({ engine: names[engine], severity: 0, value: clean.value });
        for (const [severity, values] of sums) rows.push({ engine: names[engine], severity, value: values.reduce((a, b) => a + b) / values.length });
      }
      return embed(element, "severity", rows, { VALUE: "top-1, mean over corruptions", FORMAT: ".1%" });
    },
    groups: (element) => dots(element, "top-1 accuracy", ([view, , metric, , , , n, , part]) => view === element.dataset.view && metric === "acc1" && part && `${part} (n = ${n})`),
    retrieval: (element) => dots(element, "recall", ([view, , metric, title]) => view === element.dataset.view && metric.includes("_retrieval_recall@") && title),
    reliability: (element) => diagrams(element, data.bins, (chart, engine, view) => {
      const rows = barRows(engine, view), base = data.engines[engine].reference;
      return embed(chart, "reliability", rows, {}, { line: base < 0 || base === engine ? [] : barRows(base, view) });
    }),
    histogram: (element) => diagrams(element, data.histograms, (chart, engine, view) => {
      const { score, rows } = histogramRows(engine, view);
      return embed(chart, "histogram", rows, { VALUE: `outlier score (${score})` });
    }),
  };

  const severityKeys = (view) => data.keys.flatMap((key, index) => (key[0] === view && key[2] === "corruption_acc1" && key[9] ? [index] : []));

  function dots(element, title, labelOf) {
    const rows = [];
    for (const [index, key] of data.keys.entries()) {
      const label = labelOf(key);
      for (const engine of label ? shown : []) {
        const found = cell(engine, index);
        if (found && found.value !== null && !data.engines[engine].twin) rows.push({ label, engine: names[engine], n: found.n, value: found.value, low: found.low, high: found.high });
      }
    }
    const count = (name) => new Set(rows.map((row) => row[name])).size;
    const DOMAIN = [...new Set(rows.map((row) => row.engine))];
    return embed(element, "dots", rows, { VALUE: title, FORMAT: ".1%", DOMAIN }, { height: count("label") * (11 * count("engine") + 14) });
  }

  function barRows(engine, view) {
    return (data.bins[engine][view] ?? []).map(([lower, upper, n, confidence, accuracy, low, high]) =>
      ({ engine: names[engine], lower, upper, middle: (lower + upper) / 2, n, confidence, accuracy, low, high }));
  }

  function histogramRows(engine, view) {
    const [score, first, last, inside, outside] = data.histograms[engine][view];
    const rows = [];
    for (const [population, counts] of [["in-distribution", inside], [view, outside]]) {
      const total = counts.reduce((a, b) => a + b, 0);
      counts.forEach((count, index) => rows.push({ population, score: first + ((last - first) * index) / counts.length, count, part: count / total }));
    }
    return { score, rows };
  }

  function diagrams(grid, perEngine, draw) {
    const view = grid.dataset.view;
    const figures = shown.filter((engine) => perEngine[engine][view] && !data.engines[engine].twin).map((engine) => {
      const chart = make("div", { className: "chart", ariaLabel: `${grid.getAttribute("aria-label")}: ${names[engine]}` });
      chart.style.minHeight = "15rem";
      chart.draw = () => draw(chart, engine, view);
      later(chart);
      return make("figure", {}, make("figcaption", {}, make("bdi", {}, names[engine])), chart);
    });
    grid.replaceChildren(...figures);
  }

  // --- The numbers behind charts -----------------------------------------------------------------------------------

  const numbers = {
    trade_off(element) {
      const { rows, key, cost } = tradeRows();
      return [tableOf(`${cost.title} and ${titleOf(key)}`, ["engine", "runtime", cost.title, titleOf(key), "Pareto"], rows.map((row) => [row.engine, row.runtime, row.costs, row.metric, row.Pareto]))];
    },
    bits(element) {
      const { sets, key } = bitsRows();
      return sets.map(([state, rows]) => tableOf(`${titleOf(key)}: ${stateTitle(state)}`, ["engine", "bits", "method", "towers", titleOf(key)],
        rows.map((row) => [row.engine, row.bits ? row.widths : "–", row.method, row.towers, row.metric])));
    },
    reliability: (element) => ofEngines(element, data.bins, (engine, view) => tableOf(`${names[engine]} on ${view}`, ["confidence", "n", "mean confidence", "accuracy [95 %]"],
      barRows(engine, view).map((row) => [`${row.lower} to ${row.upper}`, String(row.n), String(row.confidence), `${row.accuracy} [${row.low}, ${row.high}]`]))),
    histogram: (element) => ofEngines(element, data.histograms, (engine, view) => {
      const { score, rows } = histogramRows(engine, view);
      return tableOf(`${names[engine]} on ${view}`, [`${score} from`, "population", "images"], rows.filter((row) => row.count).map((row) => [row.score.toPrecision(4), row.population, String(row.count)]));
    }),
  };

  const ofEngines = (element, perEngine, draw) => {
    const view = element.dataset.view;
    return shown.filter((engine) => perEngine[engine][view] && !data.engines[engine].twin).map((engine) => draw(engine, view));
  };

  // --- Flips -------------------------------------------------------------------------------------------------------

  let flipsShown = 24;

  function drawFlips() {
    const view = find("#flip-view").value, kind = find("#flip-kind").value;
    const visible = new Set(shown);
    const found = data.flips.filter((flip) => visible.has(flip[0]) && flip[1] === view && (kind === "" || flip[2] === Number(kind)));
    find("#gallery").replaceChildren(...found.slice(0, flipsShown).map(([engine, , gained, sample, label, before, sure, now, surer, photo]) => {
      const text = make("figcaption", {}, make("b", {}, gained ? "gained" : "lost"), ` by `, make("bdi", {}, names[engine]), make("br"), make("bdi", {}, label), make("br"),
        "reference: ", make("bdi", {}, before), ` ${(100 * sure).toFixed(0)} %`, make("br"), "now: ", make("bdi", {}, now), ` ${(100 * surer).toFixed(0)} %`, make("br"), make("small", { className: "quiet" }, make("bdi", {}, sample)));
      const figure = make("figure", { className: gained ? "gained" : "lost" });
      if (photo) figure.append(make("img", { src: `data:image/webp;base64,${data.photos[photo]}`, alt: `sample ${sample}`, width: 96, height: 96 }));
      figure.append(text);
      return figure;
    }));
    if (!found.length) find("#gallery").append(make("p", { className: "quiet" }, "No flips here."));
    find("#more-flips").hidden = found.length <= flipsShown;
  }

  // --- Drawing what is seen, and again after a choice ----------------------------------------------------------------

  const observer = new IntersectionObserver((seen) => {
    for (const { target, isIntersecting } of seen) if (isIntersecting) draw(target);
  }, { rootMargin: "400px" });

  function draw(element) {
    observer.unobserve(element);
    if (element.drawn) return null;
    element.drawn = true;
    if (element.draw) return element.draw();
    if (element.dataset.table) return drawTable(element);
    if (element.dataset.numbers) return element.replaceChildren(...numbers[element.dataset.numbers](element));
    return charts[element.dataset.chart](element);
  }

  function later(element) {
    element.drawn = false;
    observer.observe(element);
  }

  const drawable = () => all("[data-table], [data-chart], [data-numbers]");
  const inClosed = (element) => element.closest("details:not([open])") !== null;

  function again(elements = drawable()) {
    for (const element of elements) later(element);
    idle();
  }

  const pending = () => [...all("[data-table], [data-chart], [data-numbers], .grid .chart")].find((element) => !element.drawn && !inClosed(element));
  const ready = () => { document.documentElement.dataset.ready = "true"; };

  // What stands open is drawn before anyone scrolls there or prints; a bit at a time.
  let waiting = false;
  function idle() {
    if (waiting) return;
    waiting = true;
    (window.requestIdleCallback ?? setTimeout)(async () => {
      waiting = false;
      const next = pending();
      if (next) { await draw(next); idle(); } else ready();
    });
  }

  // --- Choices -----------------------------------------------------------------------------------------------------

  function filter() {
    const words = find("#filter").value.toLowerCase().split(/\s+/).filter(Boolean), kind = find("#kind").value;
    shown = data.engines.map((_, index) => index).filter((index) =>
      words.every((word) => haystacks[index].includes(word)) && (!kind || data.engines[index].simulated === (kind === "simulated")));
    const visible = new Set(shown);
    for (const element of all("[data-engine]")) element.hidden = !visible.has(Number(element.dataset.engine));
    find("#shown").textContent = `${shown.length} of ${data.engines.length} engines`;
    if (find("#gallery")) drawFlips();
    again();
  }

  function fill(select, options, chosen) {
    select.replaceChildren(...options.map(([value, text]) => make("option", { value: String(value) }, text)));
    select.value = String(chosen ?? options[0]?.[0]);
  }

  const chartable = (key) => key[7];

  function chooseMetric(viewSelect, metricSelect, redraw) {
    const views = [...new Set(data.keys.filter(chartable).map(([view]) => view))];
    const metrics = () => {
      const options = data.keys.flatMap((key, index) => (key[0] === viewSelect.value && chartable(key) ? [[index, titleOf(index)]] : []));
      fill(metricSelect, options, options.find(([index]) => data.keys[index][2] === "acc1")?.[0]);
    };
    fill(viewSelect, views.map((view) => [view, view]));
    metrics();
    viewSelect.addEventListener("change", () => { metrics(); redraw(); });
    metricSelect.addEventListener("change", redraw);
  }

  if (find("#cost")) {
    const largest = data.costs.findLastIndex((cost) => /image tower, batch/.test(cost.title));
    fill(find("#cost"), data.costs.map((cost, index) => [index, cost.title]), Math.max(0, largest));
    const redraw = () => again(all("[data-chart=trade_off], [data-numbers=trade_off]"));
    chooseMetric(find("#trade-view"), find("#trade-metric"), redraw);
    find("#cost").addEventListener("change", redraw);
  }
  chooseMetric(find("#bits-view"), find("#bits-metric"), () => again(all("[data-chart=bits], [data-numbers=bits]")));
  if (find("#gallery")) {
    fill(find("#flip-view"), [...new Set(data.flips.map((flip) => flip[1]))].map((view) => [view, view]));
    for (const select of [find("#flip-view"), find("#flip-kind")]) select.addEventListener("change", () => { flipsShown = 24; drawFlips(); });
    find("#more-flips").addEventListener("click", () => { flipsShown += 48; drawFlips(); });
  }
  find("#filter").addEventListener("input", filter);
  find("#kind").addEventListener("change", filter);
  dark.addEventListener("change", () => again());
  for (const element of all("details")) element.addEventListener("toggle", idle);

  filter();
  if (location.hash === "#print") {
    // A printer waits for no idle moment. Tables that repeat a chart stay folded.
    for (const element of all("details:not(.behind)")) element.open = true;
    for (let next; (next = pending());) await draw(next);
    ready();
  }
})();
