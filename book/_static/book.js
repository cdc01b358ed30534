// On a first visit the theme has no mode yet: it would log an error and flash. Follow the system.
{
  const root = document.documentElement.dataset;
  root.mode ||= "auto";
  root.theme ||= matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

// The sidebar's folding arrows have no name of their own.
document.addEventListener("DOMContentLoaded", () => {
  for (const arrow of document.querySelectorAll("nav summary:not([aria-label])"))
    arrow.setAttribute("aria-label", "Pages below");
});

// On a phone a wide figure keeps its text legible and is scrolled within its own frame, by keyboard
// too; a click shows it by itself.
document.addEventListener("DOMContentLoaded", () => {
  for (const image of document.querySelectorAll(".bd-article img:not(.frames img)")) {
    const framed = () => {
      if (image.naturalWidth < 700) return;
      const frame = document.createElement("div");
      frame.className = "wide";
      frame.tabIndex = 0;
      frame.setAttribute("role", "group");
      frame.setAttribute("aria-label", "Figure");
      (image.closest("a") ?? image).replaceWith(frame);
      frame.append(image);
      image.addEventListener("click", () => window.open(image.src));
    };
    if (image.complete) framed();
    else image.addEventListener("load", framed, { once: true });
  }
});

// pandas writes the names of the rows into a header row of their own, and aligns no numbers.
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll(".bd-article table.dataframe")) {
    const [columns, names] = table.tHead?.rows ?? [];
    const rows = [...(table.tBodies[0]?.rows ?? [])].map((row) => row.querySelectorAll("td"));
    const width = rows[0]?.length ?? 0;
    if (!columns || !width || rows.some((row) => row.length !== width)) continue;
    const heads = [...columns.cells].slice(-width);
    if (names && !table.tHead.rows[2] && heads.length === width) {
      const rest = [...names.cells].slice(-width);
      if (names.cells.length === columns.cells.length && rest.every((cell) => !cell.textContent)) {
        for (const [i, cell] of [...names.cells].slice(0, -width).entries())
          columns.cells[i].textContent = cell.textContent;
        names.remove();
      }
    }
    for (const [i, head] of heads.entries()) {
      const texts = rows.map((row) => row[i].textContent.trim()).filter(Boolean);
      if (!texts.length || !texts.every((text) => /^[-+]?[\d,]*\.?\d+%?$/.test(text))) continue;
      for (const cell of [head, ...rows.map((row) => row[i])]) cell.classList.add("number");
    }
  }
});
