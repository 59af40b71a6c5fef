// Every figure that is not a link yet leads to itself at full size.
document.addEventListener("DOMContentLoaded", () => {
  for (const image of document.querySelectorAll("article img")) {
    if (image.closest("a")) continue;
    const link = document.createElement("a");
    link.href = image.src;
    link.className = "full-size";
    link.title = "Full size";
    image.replaceWith(link);
    link.append(image);
    const mark = () => link.classList.toggle("wide", image.naturalWidth > 2 * image.naturalHeight);
    image.complete ? mark() : image.addEventListener("load", mark);
  }
});
