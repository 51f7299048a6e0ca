// Copies the text of the element that a button names; without a clipboard it stays selected.
for (const button of document.querySelectorAll('button[data-copies]')) {
  button.hidden = false;
  button.addEventListener('click', () => {
    const range = document.createRange();
    range.selectNodeContents(document.getElementById(button.dataset.copies));
    const selection = window.getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
    const copied = document.execCommand('copy');
    button.nextElementSibling.textContent = copied ? 'copied' : 'selected: copy it';
  });
}
