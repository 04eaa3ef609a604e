// The ledger sorts and filters, cells know their column, and pictures enlarge. No library; works from a file.
"use strict";

const make = (tag, properties = {}) => Object.assign(document.createElement(tag), properties);

function labelled(table) {
  const names = [...(table.tHead?.rows[0]?.cells ?? [])].map((header) => header.textContent.trim());
  for (const body of table.tBodies) {
    for (const row of body.rows) [...row.cells].forEach((cell, i) => (cell.dataset.label = names[i] ?? ""));
  }
}

function ledger(table) {
  const rows = [...table.tBodies[0].rows];
  const headers = [...table.tHead.rows[0].cells];
  const names = headers.map((header) => header.textContent.trim());
  // A verdict goes by its badge; what follows it in the cell is detail.
  const value = (row, i) => (row.cells[i].querySelector(".verdict") ?? row.cells[i]).textContent.trim();

  headers.forEach((header, i) => {
    const button = make("button", { type: "button", textContent: names[i], title: `Sort by ${names[i]}` });
    header.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = header.getAttribute("aria-sort") !== "ascending";
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", up ? "ascending" : "descending");
      const order = (a, b) => value(a, i).localeCompare(value(b, i), "en", { numeric: true });
      table.tBodies[0].append(...rows.toSorted((a, b) => (up ? order(a, b) : order(b, a))));
    });
  });

  const filters = make("div", { className: "filters" });
  const search = make("input", { type: "search", placeholder: "Search the rows", ariaLabel: "Search the rows" });
  const selects = ["Verdict", "Data"].map((name) => {
    const select = make("select", { ariaLabel: name });
    select.append(make("option", { value: "", textContent: `${name}: all` }));
    for (const found of new Set(rows.map((row) => value(row, names.indexOf(name))))) {
      select.append(make("option", { value: found, textContent: found }));
    }
    return select;
  });
  const shown = make("output");
  const filter = () => {
    for (const row of rows) {
      const fits = selects.every((s) => !s.value || value(row, names.indexOf(s.ariaLabel)) === s.value);
      row.hidden = !(fits && row.textContent.toLowerCase().includes(search.value.toLowerCase()));
    }
    shown.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
  };
  filters.append(search, ...selects, shown);
  filters.addEventListener("input", filter);
  (table.closest(".pst-scrollable-table-container") ?? table).before(filters);
  filter();
}

function enlarging(images) {
  const dialog = make("dialog", { className: "enlarged" });
  dialog.addEventListener("click", () => dialog.close());
  document.body.append(dialog);
  const open = (image) => {
    const copy = make("img", { src: image.src, alt: image.alt });
    copy.classList.toggle("pixels", image.classList.contains("pixels"));
    dialog.replaceChildren(copy);
    dialog.showModal();
  };
  for (const image of images) {
    image.classList.add("enlarges");
    image.tabIndex = 0;
    image.setAttribute("role", "button");
    image.addEventListener("click", () => open(image));
    image.addEventListener("keydown", (event) => event.key === "Enter" && open(image));
  }
}

document.querySelectorAll(".bd-article table").forEach(labelled);
document.querySelectorAll("table.ledger").forEach(ledger);
enlarging([...document.querySelectorAll(".bd-article img")].filter((image) => !image.closest("a")));
