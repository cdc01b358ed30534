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
