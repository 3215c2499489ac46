"""The pages in a browser: no error, nothing too wide, keys work. Needs `chromium` on the PATH."""

import functools
import http.server
import json
import re
import shutil
import subprocess
import threading

import pytest

from offpolicy_rl import report
from tests import report_runs
from tests.report_runs import ATTACK, CONFIG, episode, evaluation, sample, train_row

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")
SWITCHES = (
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--window-size=1440,900",
  "--enable-logging=stderr",
  "--v=0",
  "--virtual-time-budget=4000",
)

# Opens every page wide and narrow, uses it as a person would, and writes down what happens.
HARNESS = """<!doctype html><body><script>
const found = {};
async function visit(name, width) {
  const frame = document.createElement("iframe");
  frame.style = `width: ${width}px; height: 844px; border: 0`;
  frame.src = name;
  document.body.append(frame);
  await new Promise((loaded) => { frame.onload = loaded; });
  const inside = frame.contentDocument, own = frame.contentWindow;
  const press = (on, key, shiftKey = false) => on.dispatchEvent(
    new own.KeyboardEvent("keydown", {key, shiftKey, bubbles: true, cancelable: true}));
  const all = (what) => [...inside.querySelectorAll(what)];
  const one = (what) => inside.querySelector(what);
  const text = (what) => one(what).textContent;
  const result = found[`${name} ${width}`] = {
    too_wide: inside.documentElement.scrollWidth - inside.documentElement.clientWidth,
    small: all("svg text").some((t) => t.getBoundingClientRect().height < 10),
  };
  const plots = all(".plot");
  const plot = plots.find((p) => p.getAttribute("aria-label") === "Reward");
  if (plot) {
    const shown = () => [plot.getAttribute("aria-valuetext"),
      plot.parentElement.querySelector(".at").textContent,
      plot.parentElement.querySelector(".key b").textContent];
    plot.focus();
    result.focused = inside.activeElement === plot;
    press(plot, "Home");
    result.first = shown();
    press(plot, "ArrowRight");
    result.second = shown();
    result.others = plots.map((p) => p.parentElement.querySelector(".at").textContent);
    press(plot, "Escape");
    result.left = shown();
    const box = plot.querySelector("svg").getBoundingClientRect();
    plot.dispatchEvent(new own.PointerEvent("pointermove", {clientX: box.right, bubbles: true}));
    result.last = shown();
    one("#smoothing").click();
    result.rough = own.getComputedStyle(one(".smooth")).display;
  }
  const browser = one("#browser");
  if (browser) {
    result.where = [text("#where")];
    press(browser, "ArrowLeft");
    result.where.push(text("#where"));
    press(browser, "ArrowLeft");
    press(browser, "ArrowLeft");
    result.where.push(text("#where"), one("#earlier").disabled);
    one("#later").click();
    result.where.push(text("#where"));
    press(browser, "ArrowRight", true);
    result.token = text("#token");
    one(".completion").scrollIntoView({block: "end"});
    result.in_view = one("#token").getBoundingClientRect().bottom <= own.innerHeight;
    result.painted = one(".chosen").style.background;
    result.prompt = text("#prompt");
    result.completions = all(".tokens").map((t) => t.textContent);
    result.newer = all(".newer").length;
    one("#colour").value = "version";
    one("#colour").dispatchEvent(new own.Event("change"));
    result.versions = all(".scale .patch").length;
  }
  if (one(".talk")) {
    const box = (what) => what.getBoundingClientRect();
    result.talk = [...one(".talk").children].map((part) => part.textContent);
    result.authors = all("h3").map((heading) => heading.textContent);
    result.rewards = all("h3 span").map((reward) => reward.className);
    result.calls = all(".call").map((call) => call.textContent);
    result.beyond = all("#browser *").filter((e) => box(e).right > box(browser).right).length;
    result.margin = box(one(".turn")).left;
    const heading = own.getComputedStyle(one("h3"));
    result.heading = [parseFloat(heading.fontSize), box(one("h3")).width];
    const last = all(".turn .tokens").at(-1), right = box(last).right - 2;
    last.scrollIntoView({block: "center"});
    inside.elementFromPoint(right, box(last).top + 5).dispatchEvent(
      new own.MouseEvent("click", {bubbles: true, clientX: right, clientY: box(last).top + 5}));
    result.tapped = text("#token");
    one("#before").click();
    result.before_it = text("#token");
    const finger = new own.PointerEvent("pointerover", {pointerType: "touch", bubbles: true});
    one("[data-token]").dispatchEvent(finger);
    result.scrolled_over = text("#token");
    const buttons = all("#before, #after").map(box);
    result.buttons = Math.min(...buttons.map((b) => Math.min(b.width, b.height)));
  }
  for (const box of all("input.shown").slice(0, 1)) {
    const visible = () => all("polyline.r0, polyline.r1").filter(
      (line) => own.getComputedStyle(line).display !== "none").map((line) => line.classList[1]);
    result.before = visible();
    box.click();
    result.after = visible();
  }
}
(async () => {
  for (const name of PAGES) for (const width of [1440, 390]) await visit(name, width);
  const out = document.createElement("pre");
  out.id = "found";
  out.textContent = JSON.stringify(found);
  document.body.replaceChildren(out);
})();
</script></body>"""


def chromium(address: str, profile) -> tuple[str, list[str]]:
  """(the page after its scripts have run, what it wrote to the console)."""
  done = subprocess.run(
    [CHROMIUM, *SWITCHES, f"--user-data-dir={profile}", "--dump-dom", address],
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Pages: of a whole run, of one that has begun, of two, of one with episodes."""
  folder = tmp_path_factory.mktemp("pages")
  whole = report_runs.write(
    folder / ("a_long_name_without_any_room_for_a_line_break" * 2),
    train=[(s, train_row(s, mismatch__max=1e-6 * (s + 1))) for s in range(60)],
    heldout=[(s, evaluation("during", s, s / 60)) for s in range(0, 61, 20)],
    samples=[sample(s, ATTACK, "x" * 300, " two\nlines", tokens=40) for s in (0, 10, 59)],
  )
  begun = report_runs.write(folder / "begun")
  report.write(whole).rename(folder / "whole.html")
  report.write(begun).rename(folder / "begun.html")
  short = report_runs.write(folder / "short", train=[(s, train_row(s)) for s in range(5)])
  report.compare([whole, short], folder / "both.html")
  named = CONFIG | {"task": {"name": "package.module:" + "a_long_name" * 5}}
  episodes = [episode(3), episode(7)]
  report.write(report_runs.write(folder / "talk", config=named, samples=episodes)).rename(
    folder / "talk.html"
  )
  return folder


@pytest.fixture(scope="module")
def used(folder, tmp_path_factory):
  """(what the harness found, console) of all pages, served from this machine."""
  pages = json.dumps(["whole.html", "begun.html", "both.html", "talk.html"])
  (folder / "harness.html").write_text(HARNESS.replace("PAGES", pages))
  quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
  serve = functools.partial(quiet, directory=folder)
  (folder / "favicon.ico").touch()  # browsers ask for one
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/harness.html"
    page, console = chromium(address, tmp_path_factory.mktemp("profile"))
    server.shutdown()
  found = re.search('<pre id="found">(.*?)</pre>', page, re.DOTALL)
  assert found, (page[:2000], console)
  plain = found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
  return json.loads(plain), console


def test_a_page_opens_from_a_file_without_a_word_on_the_console(folder, tmp_path):
  page, console = chromium(f"file://{folder}/whole.html", tmp_path / "profile")
  assert console == [] and 'class="completion"' in page
  broken = (folder / "whole.html").read_text().replace("const page =", "const pag =")
  (tmp_path / "broken.html").write_text(broken)
  _, console = chromium(f"file://{tmp_path}/broken.html", tmp_path / "another")
  assert console  # an error would have been seen; here: not the script that the policy allows


def test_no_page_says_anything_on_the_console_or_is_too_wide(used):
  found, console = used
  assert console == [] and len(found) == 8
  assert {
    name: result["too_wide"] for name, result in found.items() if result["too_wide"] > 0
  } == {}
  assert not any(result["small"] for result in found.values())


@pytest.mark.parametrize("width", [1440, 390])
def test_values_are_read_with_keys_and_pointer(used, width):
  result = used[0][f"whole.html {width}"]
  assert result["focused"]
  assert result["first"] == ["step 0: reward 0", "step 0", "0"]
  assert result["second"] == ["step 1: reward 0.01", "step 1", "0.01"]
  assert result["last"][1:] == ["step 59", "0.59"]
  assert result["left"][1:] == ["", "0.59"]  # the last value, as before
  others = set(result["others"])
  assert "step 1" in others and len(result["others"]) > 10  # all charts follow
  assert result["rough"] == "none"


@pytest.mark.parametrize("width", [1440, 390])
def test_completions_are_stepped_through(used, width):
  result = used[0][f"whole.html {width}"]
  last, middle, first, at_the_begin, again = result["where"]
  assert last.startswith("step 59, 3 of 3") and middle.startswith("step 10, 2 of 3")
  assert first.startswith("step 0, 1 of 3") and at_the_begin is True
  assert again == middle and result["prompt"] == f"prompt of 10 {ATTACK}"
  assert result["completions"][0].startswith(ATTACK + "t0 ") and len(result["completions"]) == 3
  assert " two⏎\nlines" in result["completions"][2]
  assert result["token"].endswith(
    "token 1 of completion 1: version 10 (lag 0), log-probability sampler -0.500, "
    "learner -0.250, log-ratio +0.250"
  )
  assert result["in_view"]  # wherever the token is
  assert result["painted"].startswith("rgba(47, 109, 181, 0.7")  # blue: more likely; the strongest
  assert result["newer"] == 3 and result["versions"] == 2


@pytest.mark.parametrize("width", [1440, 390])
def test_an_episode_is_a_conversation(used, width):
  result = used[0][f"talk.html {width}"]
  assert result["authors"] == [
    "policy, turn 1, versions 5, 6 reward 0",
    "environment",
    "policy, turn 2, version 6 reward -0.5",
    "environment",
    "policy, turn 3, version 7 reward 1",
  ]
  assert result["rewards"] == ["", "bad", "good"]
  assert result["calls"] == ["<tool_call>add</tool_call>", '{"name": "look", "parameters": {}}']
  _, answer, _, mark, _, _, end = result["talk"]
  assert answer == f"environment<|im_end|>{ATTACK}⏎\n"
  assert mark == " ↶ tokens 5 to 9 are not read from here on "
  assert end == "Ended after 3 turns: done, reward 0.5"


@pytest.mark.parametrize("width", [1440, 390])
def test_an_episode_is_read_and_tapped_on_a_phone(used, width):
  result = used[0][f"talk.html {width}"]
  assert result["beyond"] == 0 and result["margin"] >= 20
  size, heading = result["heading"]
  assert size >= 13 and heading > 150
  # Beside the token, at the right edge of its turn.
  assert result["tapped"].startswith('"3", token 12 of completion 1: version 7 (lag 0)')
  assert result["before_it"].endswith("written by the environment, not in the loss")
  assert result["scrolled_over"] == result["before_it"] and result["buttons"] >= 36


def test_completions_of_one_turn_have_no_blocks(used):
  assert all("talk" not in used[0][f"whole.html {width}"] for width in (1440, 390))


def test_runs_are_switched_off(used):
  result = used[0]["both.html 390"]
  assert {"r0", "r1"} == set(result["before"])
  assert {"r1"} == set(result["after"])
