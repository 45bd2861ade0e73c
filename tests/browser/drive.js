// What a reader does with a report of two runs, appended to a copy of its page: `data-driven` says the window's width and the paper's colour when all of it held, `data-error` what did not.
(async () => {
  const one = (selector) => document.querySelector(selector), all = (selector) => [...document.querySelectorAll(selector)];
  const hold = (what, holds) => { if (!holds) throw new Error(`must hold: ${what}`); };
  const key = (target, name) => target.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
  const lines = (figure) => figure.querySelectorAll("path.mean").length;
  const chart = all("#charts figure").find((f) => f.querySelector("figcaption").textContent.startsWith("loss"));
  const picture = chart.querySelector("svg"), told = () => chart.querySelector(".readout");

  hold("nothing was injected", all("script").length === 3 && !document.documentElement.dataset.hacked);
  hold("every image is inside the page", all("main img").length > 0 && all("main img").every((i) => i.src.startsWith("data:")));
  hold("nothing was fetched", performance.getEntriesByType("resource").filter((e) => !e.name.startsWith("data:")).length === 0);
  hold("the page is as wide as its window", document.documentElement.scrollWidth <= innerWidth);

  const [first, second] = all("#legend button");
  hold("two lines at first", lines(chart) === 2);
  first.click();
  hold("one line when a run is hidden", lines(chart) === 1 && first.getAttribute("aria-pressed") === "false");
  first.click();
  hold("two lines again", lines(chart) === 2 && second.getAttribute("aria-pressed") === "true");

  const smooth = one("#smooth");
  smooth.value = "0.8";
  smooth.dispatchEvent(new Event("input"));
  hold("raw lines behind smoothed ones", chart.querySelectorAll("path.raw").length === 2);
  smooth.value = "0";
  smooth.dispatchEvent(new Event("input"));

  const before = picture.querySelector("path").getAttribute("d");
  one("#log").click();
  hold("another line on a logarithmic axis", picture.querySelector("path").getAttribute("d") !== before);
  one("#log").click();

  const box = picture.getBoundingClientRect();
  picture.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + box.width - 12, clientY: box.top + 50, bubbles: true }));
  hold("the last step under the pointer", !told().hidden && told().textContent.startsWith("step 6") && told().querySelectorAll("div").length === 2);
  key(picture, "ArrowLeft");
  hold("arrow keys go along", told().textContent.startsWith("step 5"));
  key(picture, "Escape");
  hold("escape ends it", told().hidden);

  const map = one("#maps canvas[role=img]");
  key(map, "End");
  hold("the control at the last update", map.closest("figure").querySelector(".readout").textContent.startsWith("update 6step 4 of 4: "));

  const viewer = one("#viewer"), strip = all(".strip").find((s) => s.querySelectorAll(".shot").length > 1);
  strip.querySelector(".shot").click();
  hold("an image opens", viewer.open && viewer.querySelector("img").src === strip.querySelector("img").src);
  key(viewer, "ArrowRight");
  hold("the next image", viewer.querySelector("img").src === strip.querySelectorAll("img")[1].src && viewer.querySelector("p").textContent.includes("step 4"));
  viewer.querySelector("[data-move='0']").click();
  hold("it closes", !viewer.open);
  document.documentElement.dataset.driven = `${innerWidth} ${getComputedStyle(document.body).backgroundColor}`;
})().catch((error) => { document.documentElement.dataset.error = error.message; }).finally(() => {
  const { driven, error } = document.documentElement.dataset;
  parent.postMessage(error ?? driven, "*"); // to the frame that is as narrow as a phone
});
