"use strict";
// Shows the value nearest to the pointer, and takes ?theme=light or ?theme=dark. The page is whole without.
(() => {
  const theme = new URLSearchParams(location.search).get("theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  const tip = document.createElement("div");
  tip.id = "tip";
  document.body.append(tip);
  let near = null;
  const leave = () => {
    if (near) near.classList.remove("is-near");
    near = null;
    tip.classList.remove("is-shown");
  };
  for (const svg of document.querySelectorAll("svg")) {
    const spots = [...svg.querySelectorAll("circle[data-t]")];
    if (!spots.length) continue;
    svg.addEventListener("pointermove", (event) => {
      const inverse = svg.getScreenCTM().inverse();
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(inverse);
      let best = null, least = 30 * 30;
      for (const spot of spots) {
        const dx = spot.cx.baseVal.value - at.x, dy = spot.cy.baseVal.value - at.y;
        const far = dx * dx + dy * dy;
        if (far < least) { least = far; best = spot; }
      }
      if (best === near) return;
      leave();
      if (!best) return;
      near = best;
      best.classList.add("is-near");
      tip.textContent = best.dataset.t;
      const box = best.getBoundingClientRect(), own = tip.getBoundingClientRect();
      const left = Math.min(Math.max(8, box.left + box.width / 2 - own.width / 2), innerWidth - own.width - 8);
      tip.style.left = left + "px";
      tip.style.top = (box.top > own.height + 14 ? box.top - own.height - 8 : box.bottom + 8) + "px";
      tip.classList.add("is-shown");
    });
    svg.addEventListener("pointerleave", leave);
  }
})();
