"use strict";
// Redraws what a selector picks; without this script the page shows the first of each. Texts are only ever set
// as text. The colours are those of cell() in markup.py.
(() => {
  const text = (x, high) => (x / 1000).toFixed(high >= 100 ? 2 : 3);
  const make = (tag, text, cls) => {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (cls) node.className = cls;
    return node;
  };

  // rows x columns of thousandths, as the table that heat() writes
  function draw(where, caption, corner, names, columns, values, zero) {
    const sizes = values.map(Math.abs);
    let low = sizes.reduce((a, b) => Math.min(a, b), Infinity);
    const high = sizes.reduce((a, b) => Math.max(a, b), 1);
    if (zero || high - low < 0.2 * high) low = 0;
    const table = make("table", undefined, "heat");
    table.append(make("caption", caption));
    const head = table.createTHead().insertRow();
    for (let c = -1; c < columns; c++) {
      const th = make("th", c < 0 ? corner : c);
      th.scope = "col";
      head.append(th);
    }
    const body = table.createTBody();
    names.forEach((name, r) => {
      const row = body.insertRow();
      const th = make("th", name);
      th.scope = "row";
      row.append(th);
      for (let c = 0; c < columns; c++) {
        const x = values[r * columns + c];
        const v = Math.min(Math.max((Math.abs(x) - low) / Math.max(high - low, 1e-9), 0), 1);
        const td = make("td", text(x, high), (x < 0 ? "n " : "") + (v >= 0.55 ? "a " : "") + (v >= 0.7 ? "b" : ""));
        td.style.setProperty("--v", v.toFixed(2));
        row.append(td);
      }
    });
    const scroll = make("div", undefined, "scroll");
    scroll.tabIndex = 0;
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-label", caption);
    scroll.append(table);
    const legend = make("p", undefined, "legend");
    legend.append(make("span", text(low, high)), make("span", undefined, "ramp"), make("span", text(high, high)));
    where.replaceChildren(scroll, legend);
  }

  function show(block, redraw) {
    const form = block.querySelector(".picks");
    const data = JSON.parse(block.querySelector('script[type="application/json"]').textContent);
    form.hidden = false;
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("change", () => redraw(data, form.elements, data.views[form.elements.view.value]));
    return data;
  }

  for (const block of document.querySelectorAll(".weights")) {
    show(block, (data, picked, view) => {
      const [Q, S] = [view.heads, view.skills];
      let head = picked.head ? Number(picked.head.value) : -1;
      if (head >= Q) picked.head.value = head = -1;
      const values = [];
      for (let t = 0; t < data.tasks.length; t++)
        for (let s = 0; s < S; s++) {
          let sum = 0;
          for (let q = 0; q < Q; q++) if (head < 0 || q === head) sum += view.w[(t * Q + q) * S + s];
          values.push(head < 0 ? sum / Q : sum);
        }
      const which = Q === 1 ? "" : head < 0 ? ", mean of its heads" : `, head ${head}`;
      draw(block.querySelector(".shown"), `Weights, ${view.name}${which}`, "task", data.tasks, S, values, picked.zero.checked);
    });
  }

  for (const block of document.querySelectorAll(".tokens")) {
    const buttons = [...block.querySelectorAll(".chips button")];
    const said = block.querySelector(".said");
    const row = (view, i) => view.w.slice(i * view.skills, (i + 1) * view.skills);
    const data = show(block, (data, picked, view) => {
      block.querySelector(".router").textContent = ` in ${view.name}`;
      buttons.forEach((button, i) => {
        const w = row(view, i).map(Math.abs);
        const best = w.indexOf(Math.max(...w));
        button.className = `k${best % 8}`;
        button.querySelector("sub").textContent = best;
      });
      draw(block.querySelector(".shown"), "Weights of each token", "token", data.tasks, view.skills, view.w, false);
      said.textContent = "\u00a0";
    });
    const tell = (i) => {
      const view = data.views[block.querySelector("select").value];
      const used = row(view, i).map((x, s) => [x, s]).filter(([x]) => x).sort((a, b) => Math.abs(b[0]) - Math.abs(a[0]));
      said.textContent = `${data.tasks[i]}: ` + used.slice(0, 12).map(([x, s]) => `skill ${s} ${text(x, 100)}`).join(", ");
    };
    buttons.forEach((button, i) => {
      button.addEventListener("focus", () => tell(i));
      button.addEventListener("mouseenter", () => tell(i));
      button.addEventListener("keydown", (event) => {
        const to = { ArrowLeft: i - 1, ArrowRight: i + 1, Home: 0, End: buttons.length - 1 }[event.key];
        if (to === undefined || !buttons[to]) return;
        event.preventDefault();
        button.tabIndex = -1;
        buttons[to].tabIndex = 0;
        buttons[to].focus();
      });
    });
  }
})();
