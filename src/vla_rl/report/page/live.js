"use strict";
// Looks for a newer page and takes it, without moving what is on the screen or stopping a video that plays.
const line = document.querySelector(".live");
const born = Date.now();
let reached = true;
const say = () => {
  const seconds = Math.round((Date.now() - born) / 1000);
  const age = seconds < 60 ? `${seconds} s` : `${Math.floor(seconds / 60)} min`;
  line.textContent = reached ? `live · as of ${age} ago` : `the server does not answer · as of ${age} ago`;
  line.classList.toggle("lost", !reached);
};
const playing = () => [...document.querySelectorAll("video")].some((video) => !video.paused);
const look = async () => {
  try {
    const answer = await fetch("/mark", { cache: "no-store" });
    reached = answer.ok;
    const mark = await answer.text();
    if (reached && mark !== line.dataset.mark && !playing()) location.reload();
  } catch { reached = false; }
  say();
};
say();
setInterval(look, 3000);
