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
    const mark = () => {  // several panels side by side, unreadable on a phone
      const [width, ratio] = [image.naturalWidth, image.naturalWidth / image.naturalHeight];
      link.classList.toggle("wide", ratio > 2 || (width > 950 && ratio > 1.2));
    };
    image.complete ? mark() : image.addEventListener("load", mark);
  }
});
