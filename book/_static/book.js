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
