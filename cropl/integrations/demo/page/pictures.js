// The strip of pictures to choose from, the questions that go with one, and files that are uploaded or dropped.

import { address } from "./server.js";

const $ = (id) => document.getElementById(id);

function button(text, choose) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.addEventListener("click", choose);
  return made;
}

function tile(picture, choose) {
  const made = button("", () => choose(picture)), image = document.createElement("img");
  made.className = "tile";
  made.dataset.id = picture.id;
  made.title = image.alt = picture.name;
  made.setAttribute("aria-pressed", "false");
  image.src = address(picture, true);
  made.append(image);
  return made;
}

/** Offer the examples. */
export function offer(pictures, choose) {
  $("strip").append(...pictures.map((each) => tile(each, choose)));
}

/** Offer an upload, in front of them. */
export function offerFirst(picture, choose) {
  for (const old of document.querySelectorAll(`[data-id="${picture.id}"]`)) old.remove();
  $("upload").after(tile(picture, choose));
}

/** Show which picture is looked at, and what can be asked about it. */
export function mark(picture, ask) {
  for (const each of document.querySelectorAll("button.tile")) {
    each.setAttribute("aria-pressed", each.dataset.id === picture.id);
  }
  $("suggestions").replaceChildren(...picture.questions.slice(0, 4).map((text) => button(text, () => ask(text))));
}

/** Give every file that is chosen or dropped. */
export function listenToFiles(give) {
  $("file").addEventListener("change", () => {
    if ($("file").files[0]) give($("file").files[0]);
    $("file").value = "";
  });
  for (const name of ["dragover", "drop", "dragleave"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      $("stage").classList.toggle("dropping", name === "dragover");
      if (name === "drop" && event.dataTransfer.files[0]) give(event.dataTransfer.files[0]);
    });
  }
}
