"use strict";
// The page is complete without this script: it adds values under the pointer and playing all videos.
for (const plot of document.querySelectorAll(".plot[data-hover]")) {
  const data = JSON.parse(plot.dataset.hover);
  if (!data.at.length) continue;
  const cursor = plot.appendChild(document.createElement("div"));
  const tip = plot.appendChild(document.createElement("div"));
  cursor.className = "cursor";
  tip.className = "tip";
  const hide = () => { cursor.hidden = tip.hidden = true; };
  hide();
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    let nearest = 0;
    data.at.forEach((at, i) => {
      if (Math.abs(at - share) < Math.abs(data.at[nearest] - share)) nearest = i;
    });
    tip.replaceChildren(document.createTextNode(`${data.index} ${data.x[nearest]}`));
    for (const line of data.lines) {
      const row = tip.appendChild(document.createElement("div"));
      const swatch = row.appendChild(document.createElement("i"));
      swatch.className = `swatch dot ${line.color}`;
      row.append(line.label);
      row.appendChild(document.createElement("span")).textContent = line.values[nearest];
    }
    cursor.hidden = tip.hidden = false;
    const left = data.at[nearest] * box.width;
    cursor.style.left = `${left}px`;
    const room = box.width - tip.offsetWidth;
    tip.style.left = `${Math.min(Math.max(left > box.width / 2 ? left - tip.offsetWidth - 10 : left + 10, -40), Math.max(room, -40))}px`;
  });
}

const videos = [...document.querySelectorAll("video")];
const button = document.querySelector("#play-all");
const label = () => { if (button) button.textContent = videos.some((v) => !v.paused) ? "Pause all" : "Play all"; };
for (const video of videos) {
  video.controls = false; // a click plays; the browser's bar would cover a small picture
  video.tabIndex = 0;
  video.style.cursor = "pointer";
  const toggle = () => (video.paused ? video.play() : video.pause());
  video.addEventListener("click", toggle);
  video.addEventListener("keydown", (event) => {
    if (event.key === " " || event.key === "Enter") { event.preventDefault(); toggle(); }
  });
  video.addEventListener("play", label);
  video.addEventListener("pause", label);
}
if (button) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const pause = videos.some((video) => !video.paused);
    for (const video of videos) pause ? video.pause() : video.play();
  });
}
