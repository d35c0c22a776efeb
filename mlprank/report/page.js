"use strict";
window.addEventListener("error", (event) => document.body.setAttribute("data-script-error", event.message));

(() => {
  const root = document.documentElement;
  const tip = document.getElementById("tip");
  const all = (selector, from = document) => Array.from(from.querySelectorAll(selector));

  /* Theme: the system's, until the reader chooses. */
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  let chosen = null;
  try { chosen = localStorage.getItem("mlprank-theme"); } catch { /* storage is closed to local files in some browsers */ }
  const show = () => {
    const dark = chosen ? chosen === "dark" : system.matches;
    root.dataset.theme = dark ? "dark" : "light";
    button.textContent = dark ? "Light" : "Dark";
  };
  system.addEventListener("change", show);
  button.addEventListener("click", () => {
    chosen = root.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("mlprank-theme", chosen); } catch { /* as above */ }
    show();
  });
  show();

  /* Legend: click hides a measure everywhere, hovering brings it forward. */
  const marked = all("[data-series]:not(.chip)");
  for (const chip of all(".chip")) {
    const own = marked.filter((element) => element.dataset.series === chip.dataset.series);
    const light = (on) => {
      document.body.classList.toggle("dimming", on && chip.getAttribute("aria-pressed") === "true");
      own.forEach((element) => element.classList.toggle("lit", on));
    };
    chip.addEventListener("click", () => {
      const on = chip.getAttribute("aria-pressed") !== "true";
      chip.setAttribute("aria-pressed", String(on));
      own.forEach((element) => element.classList.toggle("off", !on));
      light(on);
    });
    chip.addEventListener("pointerenter", () => light(true));
    chip.addEventListener("pointerleave", () => light(false));
    chip.addEventListener("focus", () => light(chip.matches(":focus-visible")));
    chip.addEventListener("blur", () => light(false));
  }
  const hidden = (series) => all(".chip").some((c) => c.dataset.series === series && c.getAttribute("aria-pressed") === "false");

  /* Filters: show the panels that match. */
  const filters = all("select[data-filter]");
  const filter = () => {
    for (const card of all("[data-setting]")) {
      const setting = JSON.parse(card.dataset.setting);
      card.hidden = filters.some((f) => f.value && f.dataset.filter in setting && setting[f.dataset.filter] !== f.value);
    }
  };
  filters.forEach((f) => f.addEventListener("change", filter));

  /* Tooltips. */
  const place = (x, y) => {
    tip.classList.add("on");
    const box = tip.getBoundingClientRect();
    const left = x + 16 + box.width > innerWidth ? x - 16 - box.width : x + 16;
    tip.style.left = `${Math.max(6, left)}px`;
    tip.style.top = `${Math.min(Math.max(6, y - box.height / 2), innerHeight - box.height - 6)}px`;
  };
  const hide = () => { tip.classList.remove("on"); all(".guide.on").forEach((g) => g.classList.remove("on")); };
  const make = (name, content) => { const e = document.createElement(name); e.textContent = content; return e; };
  const words = (element, x, y) => {
    tip.replaceChildren(...element.dataset.tip.split("|").map((line, i) => make(i ? "div" : "b", line)));
    place(x, y);
  };
  document.addEventListener("pointerover", (event) => {
    const point = event.target.closest && event.target.closest("[data-tip]");
    if (point) words(point, event.clientX, event.clientY);
  });
  document.addEventListener("pointerout", (event) => { if (event.target.closest && event.target.closest("[data-tip]")) hide(); });
  for (const point of all("[data-tip][tabindex]")) {
    point.addEventListener("focus", () => {
      const box = point.getBoundingClientRect();
      if (point.matches(":focus-visible")) words(point, box.right, box.top);
    });
    point.addEventListener("blur", hide);
  }
  for (const chart of all("svg.lines")) {
    const stops = JSON.parse(chart.dataset.hover);
    const guide = chart.querySelector(".guide");
    let at = 0;
    const tell = (index, x, y) => {
      at = index;
      const stop = stops[index];
      guide.setAttribute("x1", stop.x);
      guide.setAttribute("x2", stop.x);
      guide.classList.add("on");
      const table = document.createElement("table");
      for (const row of stop.rows.filter((r) => !hidden(r.s))) {
        const line = table.insertRow();
        const name = line.insertCell();
        const patch = document.createElement("i");
        patch.style.background = `var(--c${row.c})`;
        name.append(patch, row.n);
        line.insertCell().textContent = row.v;
        line.insertCell().textContent = row.k;
      }
      tip.replaceChildren(make("b", stop.t), table);
      place(x, y);
    };
    chart.addEventListener("pointermove", (event) => {
      const box = chart.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width * chart.viewBox.baseVal.width;
      const distance = (i) => Math.abs(stops[i].x - x);
      const nearest = stops.reduce((best, _, i) => (distance(i) < distance(best) ? i : best), 0);
      if (stops.length) tell(nearest, event.clientX, event.clientY);
    });
    chart.addEventListener("pointerleave", hide);
    chart.addEventListener("blur", hide);
    chart.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step || !stops.length) return;
      event.preventDefault();
      const box = chart.getBoundingClientRect();
      const index = Math.min(Math.max(at + step, 0), stops.length - 1);
      tell(index, box.left + stops[index].x / chart.viewBox.baseVal.width * box.width, box.top + box.height / 2);
    });
  }
  document.body.setAttribute("data-ready", "yes");
})();
