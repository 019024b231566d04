// Light and dark: as the system says, or as chosen here.

const THEMES = ["auto", "light", "dark"];

/** What was chosen before; a page from disk may not be allowed to keep anything. */
function keptTheme() {
  try {
    const kept = localStorage.getItem("matchtir-theme");
    return THEMES.includes(kept) ? kept : "auto";
  } catch {
    return "auto";
  }
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = `theme: ${theme}`;
}

function setUpTheme() {
  setTheme(keptTheme());
  byId("theme").addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
    setTheme(next);
    try {
      localStorage.setItem("matchtir-theme", next);
    } catch {
      // It then holds until the page is left.
    }
  });
}
