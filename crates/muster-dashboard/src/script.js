"use strict";
(() => {
  const table = document.getElementById("site-table");
  if (!table) return;
  const bodies = [...table.tBodies];
  const texts = bodies.map((body) => body.rows[0].textContent.toLowerCase());
  const find = document.getElementById("find");
  const troubled = document.getElementById("troubled");
  const shown = document.getElementById("shown");
  const filter = () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    bodies.forEach((body, i) => {
      const on = words.every((w) => texts[i].includes(w)) && (!troubled.checked || body.hasAttribute("data-t"));
      body.hidden = !on;
      count += on ? 1 : 0;
    });
    shown.textContent = count + " of " + bodies.length + " shown";
  };
  find.addEventListener("input", filter);
  troubled.addEventListener("change", filter);
  filter();
  const value = (body, column) => {
    const cell = body.rows[0].cells[column];
    if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
    const text = cell.textContent.trim();
    const number = text.replace(/\u202f/g, "");
    return /^\d+$/.test(number) ? Number(number) : text;
  };
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sorted = bodies.map((body) => [value(body, column), body]);
      sorted.sort(([a], [b]) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b))));
      if (down) sorted.reverse();
      table.append(...sorted.map(([, body]) => body));
    });
  });
  const open = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const details = target && target.querySelector("details");
    if (details) details.open = true;
  };
  addEventListener("hashchange", open);
  open();
})();
