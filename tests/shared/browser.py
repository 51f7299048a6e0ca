"""A page as a browser without a network shows it, and what is wrong with it there."""

import json
import re
import shutil
import subprocess
from html import unescape

BROWSER = next(
    filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), ''
)
NO_BROWSER = 'needs chromium'
A4_WIDTH = 688
"""Of the text, pixels: 210 mm less two margins of 14 mm, at 96 to the inch."""

PROBE = """
<script>
addEventListener('load', () => {
  const found = [];
  const shown = e => e.checkVisibility({visibilityProperty: true, opacityProperty: true});
  const name = e => e.tagName + ' ' + (e.alt || e.id || e.textContent.trim().slice(0, 40));
  for (const image of document.images)
    if (!image.complete || !image.naturalWidth) found.push('missing: ' + name(image));
    else if (!image.alt) found.push('without words: ' + image.src);
  const root = document.documentElement;
  if (root.scrollWidth > innerWidth) found.push('wider than the window: ' + root.scrollWidth);
  const all = 'h1,h2,h3,h4,p,table,img,figcaption,label,legend,.box';
  const blocks = [...document.querySelectorAll(all)]
    .filter(shown).map(e => [e, e.getBoundingClientRect()]).filter(([e, box]) => box.height);
  for (const [i, [one, a]] of blocks.entries())
    for (const [other, b] of blocks.slice(i + 1))
      if (!one.contains(other)
          && Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
          && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1)
        found.push('overlap: ' + name(one) + ' / ' + name(other));
  const cut = [...document.querySelectorAll('.wide,.tall')]
    .filter(e => e.scrollWidth > e.clientWidth + 1);
  const controls = [...document.querySelectorAll('button,input,legend')].filter(shown).map(name);
  const stacks = [...document.querySelectorAll('.stack')].map(stack => {
    const seen = {};
    for (const input of stack.querySelectorAll('input')) {
      input.click();
      seen[stack.querySelector(`label[for="${input.id}"]`).textContent.trim()] =
        [...stack.querySelectorAll('.maps img')].filter(shown).map(image => image.alt);
    }
    return seen;
  });
  const pre = document.createElement('pre');
  pre.id = 'probe';
  pre.textContent = JSON.stringify({found, cut: cut.map(name), controls, stacks,
    ground: getComputedStyle(document.body).backgroundColor});
  document.body.append(pre);
});
</script>
"""


def start(*options):
    """What the browser prints on both streams."""
    command = [
        *(BROWSER, '--headless', '--no-sandbox', '--disable-gpu', '--proxy-server=127.0.0.1:9'),
        *('--hide-scrollbars', '--enable-logging=stderr', '--disable-dev-shm-usage', *options),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def inspect(page, width, *options, printed=False):
    """What is wrong with a page in a window of some width, and what its stacks show.

    Printed, its rules for paper hold on the screen.
    """
    text = page.read_text(encoding='utf-8').replace('</body>', PROBE + '</body>')
    if printed:
        text = text.replace('@media print', '@media all')
    copy = page.with_name(f'probe-{page.name}')
    copy.write_text(text, encoding='utf-8')
    try:
        out, log = start(
            f'--window-size={width},900',
            '--virtual-time-budget=2000',
            '--dump-dom',
            *options,
            copy.as_uri(),
        )
    finally:
        copy.unlink()
    found = json.loads(unescape(re.search('<pre id="probe">(.*?)</pre>', out, re.DOTALL)[1]))
    found['found'] += re.findall('CONSOLE.*', log)
    return found
