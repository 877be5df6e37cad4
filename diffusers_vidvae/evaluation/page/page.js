"use strict";

for (const button of document.querySelectorAll("[data-chart]")) {
  button.addEventListener("click", () => {
    for (const other of document.querySelectorAll("[data-chart]")) {
      const isChosen = other === button;
      other.setAttribute("aria-pressed", isChosen);
      document.getElementById(`chart-${other.dataset.chart}`).hidden = !isChosen;
    }
  });
}

for (const heading of document.querySelectorAll("th")) {
  heading.firstElementChild.addEventListener("click", () => {
    const isAscending = heading.getAttribute("aria-sort") === "ascending";
    const body = heading.closest("table").tBodies[0];
    const column = heading.cellIndex;
    const valueOf = (row) => row.cells[column].dataset.value;
    const compare = (one, other) => {
      const [a, b] = [valueOf(one), valueOf(other)];
      // What is not known stays at the end.
      if (a === "" || b === "") return (a === "") - (b === "");
      const order = isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
      return isAscending ? -order : order;
    };
    for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", isAscending ? "descending" : "ascending");
    body.append(...[...body.rows].sort(compare));
  });
}

for (const player of document.querySelectorAll(".player")) {
  const count = Number(player.dataset.frames);
  const slider = player.querySelector("input");
  const button = player.querySelector(".play");
  const output = player.querySelector("output");
  const numbers = player.dataset.numbers?.split(" ");
  const views = [...player.querySelectorAll("canvas")].map((canvas) => ({
    canvas,
    image: canvas.nextElementSibling,
    kept: new Set(canvas.dataset.kept.split(" ").filter(Boolean).map(Number)),
  }));
  let timer = null;

  const draw = ({ canvas, image, kept }) => {
    const frame = Number(slider.value);
    const width = image.naturalWidth / count;
    if (!width) return;
    canvas.width = width;
    canvas.height = image.naturalHeight;
    canvas.getContext("2d").drawImage(image, frame * width, 0, width, canvas.height, 0, 0, width, canvas.height);
    canvas.classList.toggle("is-kept", kept.has(frame));
  };
  const show = () => {
    output.value = numbers ? `frame ${numbers[slider.value]}` : `${Number(slider.value) + 1} / ${count}`;
    views.forEach(draw);
  };
  const pause = () => {
    clearInterval(timer);
    timer = null;
    button.textContent = "▶";
    button.setAttribute("aria-label", "play");
  };
  slider.addEventListener("input", () => { pause(); show(); });
  button.addEventListener("click", () => {
    if (timer) return pause();
    button.textContent = "⏸";
    button.setAttribute("aria-label", "pause");
    timer = setInterval(() => {
      slider.value = (Number(slider.value) + 1) % count;
      show();
    }, 1000 / Math.min(Math.max(Number(player.dataset.fps), 1), 60));
  });
  show();
  for (const view of views) {
    if (!view.image.complete) view.image.addEventListener("load", () => draw(view));
  }
}
