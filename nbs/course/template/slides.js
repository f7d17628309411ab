// Arrows, space, Page Up and Down, Home and End move; a click on the left or right third does too. Printing gives a PDF.
const slides = [...document.querySelectorAll("section")], stage = document.querySelector("main");
let at = 0;

function show(number) {
  at = Math.max(0, Math.min(slides.length - 1, number));
  slides.forEach((slide, i) => slide.classList.toggle("now", i === at));
  document.getElementById("number").textContent = `${at + 1} / ${slides.length}`;
  history.replaceState(null, "", `#${at + 1}`);
}

function fit() {
  const scale = Math.min(innerWidth / 1280, innerHeight / 720);
  stage.style.transform = `scale(${scale}) translate(-50%, -50%)`;
}

const steps = { ArrowRight: 1, ArrowDown: 1, PageDown: 1, " ": 1, ArrowLeft: -1, ArrowUp: -1, PageUp: -1, Home: -1e9, End: 1e9 };
addEventListener("keydown", (event) => {
  if (event.key in steps && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    show(at + steps[event.key]);
  }
});
addEventListener("click", (event) => {
  const third = event.clientX / innerWidth;
  if (!event.target.closest("a") && !String(getSelection()) && (third < 1 / 3 || third > 2 / 3)) show(at + (third > 0.5 ? 1 : -1));
});
addEventListener("resize", fit);
addEventListener("hashchange", () => show(parseInt(location.hash.slice(1)) - 1 || 0));
fit();
show(parseInt(location.hash.slice(1)) - 1 || 0);
