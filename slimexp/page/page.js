/* The page as a whole: its sections, its colours, and new records while it is served. */

const THEMES = { auto: "as the system", light: "light", dark: "dark" };
const POLL = 2000; // milliseconds between looks for new records
let VIEWS = [],
  SEARCHES = [];

/* Do `change`, and give the keyboard back to the element that had it. */
function keepFocus(change) {
  const name = document.activeElement?.dataset?.focus,
    home = document.activeElement?.closest?.("article")?.id;
  change();
  if (!name || !home || document.activeElement?.dataset?.focus === name) return;
  const again = [...document.querySelectorAll(`#${home} [data-focus]`)].find(
    (element) => element.dataset.focus === name,
  );
  again?.focus({ preventScroll: true });
}

function show() {
  const noted = DATA.newest
    ? `${count(DATA.records, "record")}, the newest of ${DATA.newest.replace("T", " ").replace("+00:00", " UTC")}. `
    : "";
  document.getElementById("about").textContent = `${noted}Choose a point by click, tap, or Tab, arrow keys and Enter.`;
  keepFocus(() => {
    VIEWS = DATA.sections.map((section, place) => new View(section, place));
    SEARCHES = DATA.searches.map((search, place) => new SearchView(search, place));
    const shown = [...SEARCHES, ...VIEWS];
    const main = document.getElementById("main"),
      contents = document.getElementById("contents");
    main.replaceChildren(...shown.map((view) => view.element));
    if (DATA.message) main.replaceChildren(node("p", { class: "quiet" }, `Nothing to show yet: ${DATA.message}`));
    contents.hidden = shown.length < 2;
    contents.replaceChildren(
      ...shown.map((view) => {
        const text = view.section?.title ?? `Search: ${view.search.name}`;
        return node("button", { type: "button", on: { click: () => view.element.scrollIntoView() } }, text);
      }),
    );
    for (const view of shown) view.update();
  });
}

/* Ask the page's own server for new records; state and place stay. */
async function poll(version) {
  const live = document.getElementById("live");
  live.hidden = false;
  try {
    const reply = await fetch("data.json", { headers: { "If-None-Match": version }, cache: "no-store" });
    if (reply.status === 200) {
      version = reply.headers.get("ETag");
      DATA = parsed(await reply.text());
      const at = scrollY;
      show();
      scrollTo(0, at);
    }
    live.textContent = "Live: new records appear by themselves.";
    live.className = "";
  } catch {
    live.textContent = "The server does not answer: this is what it last knew.";
    live.className = "warn";
  }
  setTimeout(poll, POLL, version);
}

function themed() {
  const button = document.getElementById("theme"),
    root = document.documentElement,
    names = Object.keys(THEMES);
  let theme = "auto";
  try {
    theme = localStorage.getItem("slimexp-theme") ?? theme;
  } catch {
    /* no storage: the choice ends with the visit */
  }
  if (!names.includes(theme)) theme = "auto";
  const wear = () => {
    root.dataset.theme = theme;
    button.textContent = `Colours: ${THEMES[theme]}`;
  };
  button.addEventListener("click", () => {
    theme = names[(names.indexOf(theme) + 1) % names.length];
    try {
      localStorage.setItem("slimexp-theme", theme);
    } catch {
      /* as above */
    }
    wear();
  });
  wear();
}

themed();
show();
if (DATA.live) poll(DATA.version);
