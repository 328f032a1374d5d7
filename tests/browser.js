// What of the page in the frame is too large for its place, as JSON. Every fold is opened first.
addEventListener("load", () => {
  const frame = document.querySelector("iframe");
  const page = frame.contentDocument, view = frame.contentWindow, width = view.innerWidth;
  const height = page.documentElement.scrollHeight;
  for (const each of page.querySelectorAll("details")) each.open = true;
  const faults = [];
  const area = (e) => e.getBoundingClientRect();
  const fault = (what, e) => faults.push(
    `${what}: ${e.tagName}.${e.getAttribute("class") || ""} ${e.textContent.trim().slice(0, 60)}`);

  const scrolls = (e) => {
    for (; e; e = e.parentElement)
      if (/auto|scroll|hidden/.test(view.getComputedStyle(e).overflowX)) return true;
    return false;
  };
  if (page.documentElement.scrollWidth > width) faults.push(`the page is ${page.documentElement.scrollWidth} wide`);
  for (const e of page.body.querySelectorAll("*")) {
    const box = area(e), style = view.getComputedStyle(e);
    if (!box.width || e.closest("svg")) continue;
    if (box.right > width + 1 && !scrolls(e)) fault("outside the page", e);
    if (!e.clientWidth || e.scrollWidth <= e.clientWidth + 1) continue;
    if (style.overflowX == "visible") fault("wider than its box", e);
    if (style.overflowX == "hidden" && style.textOverflow != "ellipsis") fault("cut off", e);
  }
  const over = (p, q) => p.left < q.right - 0.5 && q.left < p.right - 0.5 && p.top < q.bottom - 2.5 && q.top < p.bottom - 2.5;
  for (const picture of page.querySelectorAll("svg.chart")) {
    const own = area(picture), texts = [...picture.querySelectorAll("text")];
    for (const e of texts) {
      const box = area(e);
      if (box.left < own.left - 1 || box.right > own.right + 1) fault("outside its picture", e);
      if (box.top < own.top - 1 || box.bottom > own.bottom + 1) fault("outside its picture", e);
    }
    texts.forEach((a, i) => texts.slice(i + 1).forEach((b) => {
      if (over(area(a), area(b))) faults.push(`over one another: ${a.textContent} / ${b.textContent}`);
    }));
  }
  const markup = page.querySelectorAll("script, iframe, object, [onerror], [onload]").length;
  if (markup) faults.push(`${markup} elements that a page has no use for`);
  document.documentElement.innerHTML = "<pre id=faults></pre>";
  document.getElementById("faults").textContent = JSON.stringify({ faults, height });
});
