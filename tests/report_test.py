"""The pages about runs say what the runs wrote, and nothing that these say becomes code."""

import html
import html.parser
import json
import math
import re
import time

import pytest

from offpolicy_rl import report
from offpolicy_rl.cli import main
from offpolicy_rl.observe import metrics
from offpolicy_rl.report import completions, configuration, document, episodes, samplers, stages
from tests import report_runs
from tests.conftest import ROOT
from tests.report_runs import ATTACK, CONFIG, episode, evaluation, sample, train_row


class Outline(html.parser.HTMLParser):
  """Elements with their attributes, and all text outside scripts and styles."""

  def __init__(self, page: str):
    super().__init__()
    self.elements, self.text = [], ""
    self._within = []
    self.feed(page)

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    self._within.append(tag)

  def handle_endtag(self, tag):
    self._within.append("/" + tag)

  def handle_data(self, data):
    if self._within and self._within[-1] not in ("script", "style"):
      self.text += data + " "

  def has(self, *words: str) -> bool:
    return all(" ".join(word.split()) in " ".join(self.text.split()) for word in words)


def data_of(page: str) -> dict:
  return json.loads(re.search('<script type="application/json" id="data">(.*?)</script>', page)[1])


def charts_of(page: str) -> dict:
  """Values of every chart by its title."""
  titles = map(html.unescape, re.findall(r"<figure><figcaption><b>(.*?)</b>", page))
  return dict(zip(titles, data_of(page)["charts"], strict=True))


def test_the_page_says_what_the_run_wrote(tmp_path):
  report_runs.write(
    tmp_path,
    train=[(s, train_row(s)) for s in range(30)],
    samples=[sample(0, "a")],
    heldout=[(0, evaluation("before", 0, 0.125)), (30, evaluation("after", 30, 0.75))],
    others=[(metrics.TASK, 0, {"prompts": 1234, "prompts_too_long": 5})],
  )
  page = report.write(tmp_path).read_text()
  outline, charts = Outline(page), charts_of(page)
  assert outline.has("fixed 3", "2 prompts x 4 completions", "30 of 40", "0.125 → 0.750")
  assert outline.has("before 0 0.125 0.125 0.010 0.225 4 64")
  assert outline.has("after 30 0.750 0.750 0.010 0.850 4 64", "time of all steps 0:12")
  assert outline.has("prompts 1,234", "prompts too long 5")
  assert charts["Reward"]["lines"] == [{"x": [*range(30)], "y": [s / 100 for s in range(30)]}]
  assert charts["Held-out accuracy"]["lines"][0] == {"x": [0, 30], "y": [0.125, 0.75]}
  assert charts["Learner's utilisation"]["lines"][0]["y"] == [0.75] * 29  # without the first
  assert charts["Learner's tokens"]["lines"][0]["y"] == [1500] * 29
  regimes = [line["y"][0] for line in charts["Regimes"]["lines"]]
  assert regimes == [0.75, 0.25, 0]
  in_flight = charts["Lag in flight"]
  assert in_flight["labels"] == ["0", "1"] and in_flight["columns"] == [[0.75, 0.25]] * 30
  assert charts["Lag in queue"]["columns"][7] == [0, 0, 1]


def test_text_of_a_run_stays_text(tmp_path):
  run_dir = tmp_path / "<i>run"
  config = CONFIG | {"task": {"name": ATTACK}, ATTACK: {ATTACK: ATTACK}}
  report_runs.write(
    run_dir,
    config=config,
    samples=[sample(0, ATTACK)],
    others=[(metrics.TASK, 0, {ATTACK: 1})],
    train=[(0, train_row(0))],
    heldout=[(0, evaluation(ATTACK, 0, 0.5))],
  )
  (run_dir / "ledger.json").write_text(json.dumps({ATTACK: 3}))
  other = report_runs.write(tmp_path / "other", train=[(0, train_row(0))])
  one = report.write(run_dir).read_text()
  both = report.compare([run_dir, other], tmp_path / "both.html").read_text()
  for page in (one, both):
    outline = Outline(page)
    tags = [tag for tag, _ in outline.elements]
    assert tags.count("script") == 3 and "img" not in tags  # data, charts.js, browser.js
    assert outline.text.count(ATTACK) >= 3 and not {"onerror", "i-run"} & set(tags)
    assert "<i>run" not in page and "&lt;i&gt;run" in page
  assert ATTACK in data_of(one)["completions"]["groups"][0]["completions"][0]["pieces"][0]


def test_nothing_comes_from_elsewhere_and_no_script_but_our_own_may_run(tmp_path):
  page = report.write(report_runs.write(tmp_path, samples=[sample(0, "a")])).read_text()
  assert not re.search(r"https?://", page.replace("http://www.w3.org/2000/svg", ""))
  attributes = [dict(attrs) for _, attrs in Outline(page).elements]
  assert not any({"src", "onclick", "onload", "style"} & attrs.keys() for attrs in attributes)
  policy = next(a["content"] for a in attributes if a.get("http-equiv"))
  assert policy.startswith("default-src 'none'") and policy.count("sha256-") == 2
  scripts = policy.partition("script-src")[2]
  assert "unsafe-inline" not in scripts


def test_a_run_that_has_only_begun_has_a_page(tmp_path):
  page = report.write(report_runs.write(tmp_path)).read_text()
  assert Outline(page).has(
    "No evaluation has finished", "0 of 40", "No completion has been recorded yet"
  )
  assert charts_of(page) == {} and 'id="objective"' not in page
  half = report_runs.write(tmp_path, train=[(0, train_row(0))])
  assert charts_of(report.write(half).read_text())["Reward"]["lines"] == [{"x": [0], "y": [0]}]


def test_files_of_older_runs_and_cut_ones_are_read(tmp_path):
  row = train_row(0) | {"lag/histogram": {"3": 8}}
  old = {k: v for k, v in row.items() if not k.startswith(("lag/in_", "filtered", "regime"))}
  group = {"step": 0, "version": 7, "prompt": "p", "completions": [{"text": "ab", "reward": 0.5}]}
  report_runs.write(tmp_path, train=[(0, old)], samples=[group])
  with (tmp_path / "completions.jsonl").open("a") as file:
    file.write('{"step": 10, "ver')
  page = report.write(tmp_path).read_text()
  assert charts_of(page)["Lag of every token"]["columns"] == [[0, 0, 0, 1]]
  [shown] = data_of(page)["completions"]["groups"]
  [completion] = shown["completions"]
  assert completion["pieces"] == ["ab"] and completion["versions"] == [[7, 1]]
  assert completion["ratios"] == [] and completion["tokens"] is None


def test_replaced_groups_are_counted_by_length(tmp_path):
  lengths = [{"8": 2}, {}, {"8": 1, "16": 4}]
  rows = [train_row(s, filtered__by_length=found) for s, found in enumerate(lengths)]
  page = report.write(report_runs.write(tmp_path, train=list(enumerate(rows)))).read_text()
  lines = charts_of(page)["Replaced groups"]["lines"]
  assert [line["y"] for line in lines] == [[2, 0, 1], [0, 0, 4]]
  assert Outline(page).has("5 to 8 tokens 3", "9 to 16 tokens 4")


def test_alarms_are_counted(tmp_path):
  rows = [(s, train_row(s, alarm__memorising=float(s < 3))) for s in range(5)]
  page = report.write(report_runs.write(tmp_path, train=rows)).read_text()
  assert Outline(page).has(
    "the mean log-ratio is positive, by more than two standard errors 3 of 5"
  )


def test_values_that_are_no_numbers_leave_a_gap(tmp_path):
  rows = [(s, train_row(s, entropy=float("nan") if s == 1 else 0.5)) for s in range(3)]
  group = sample(0, "a")
  group["completions"][0]["log_ratios"][0] = float("-inf")
  page = report.write(report_runs.write(tmp_path, train=rows, samples=[group])).read_text()
  assert charts_of(page)["Entropy"]["lines"][0] == {"x": [0, 2], "y": [0.5, 0.5]}
  assert data_of(page)["completions"]["groups"][0]["completions"][0]["ratios"] == [None, -125]


def test_a_long_run_makes_a_small_page(tmp_path):
  rows = [(s, train_row(s, **{f"extra__{i}": s / 7 for i in range(20)})) for s in range(10_000)]
  many = [sample(s, "abc", "def", tokens=60) for s in range(0, 10_000, 40)]
  report_runs.write(tmp_path, train=rows, samples=many)
  start = time.process_time()
  page = report.write(tmp_path).read_text()
  assert len(page) < 3e6 and time.process_time() - start < 20
  reward = charts_of(page)["Reward"]["lines"][0]
  assert len(reward["x"]) <= 300
  width = reward["x"][1] - reward["x"][0]
  assert reward["x"][-1] == reward["x"][-2] + width == 10_000 // width * width + (width - 1) / 2
  assert reward["y"][0] == pytest.approx((width - 1) / 2 / 100, rel=1e-3)  # the mean of its bin
  steps = [group["step"] for group in data_of(page)["completions"]["groups"]]
  assert len(steps) <= 80 and (steps[0], steps[-1]) == (0, 9960)


def test_a_completion_as_the_browser_gets_it():
  found = completions.for_browser([sample(4, "a", tokens=1)])
  assert found["range"] == 0.25
  [completion] = found["groups"][0]["completions"]
  assert completion == {
    "reward": 1.0,
    "finished": True,
    "ended": None,
    "tokens": 3,
    "pieces": ["a", "t0 ", "<eos>"],
    "gap": 0,
    "versions": [[4, 1], [5, 2]],
    "sampler": [-500] * 3,
    "ratios": [250, -125, -125],
    "rewinds": [],
    "turns": 0,
    "blocks": [],
  }


def test_the_middle_of_a_long_completion_is_left_out():
  [completion] = completions.for_browser([sample(0, "a", tokens=1998)])["groups"][0]["completions"]
  assert completion["tokens"] == 2000 and completion["gap"] == 1000
  assert len(completion["pieces"]) == len(completion["ratios"]) == 1000
  assert completion["pieces"][699:701] == ["t698 ", "t1699 "]
  assert completion["versions"] == [[0, 700], [1, 300]]


def test_where_a_context_goes_back_is_told_where_it_is_shown():
  row = sample(0, "a", tokens=1998)
  row["completions"][0]["rewinds"] = [[5, 2], [900, 700], [1800, 0]]
  [completion] = completions.for_browser([row])["groups"][0]["completions"]
  assert completion["rewinds"] == [[5, 3, 5], [800, 1, 1800]]


def block(policy, turn, reward, *parts, continued=False):
  return {
    "policy": policy,
    "turn": turn,
    "reward": reward,
    "continued": continued,
    "parts": list(parts),
  }


def shown_completion(*samples) -> dict:
  """The first one of the first sample."""
  return completions.for_browser(samples)["groups"][0]["completions"][0]


def test_an_episode_is_told_by_who_wrote_it():
  completion = shown_completion(episode(7))
  assert completion["blocks"] == [
    block(True, 1, 0.0, [1, False], [3, True]),
    block(False, None, None, [3, False]),
    block(True, 2, -0.5, [1, True], [1, False]),
    block(False, None, None, [2, False]),
    block(True, 3, 1.0, [1, False]),
  ]
  assert completion["ended"] == "done" and completion["turns"] == 3
  assert completion["rewinds"] == [[9, 5, 9]]  # in front of the second answer


def test_rewards_of_nothing_are_told_where_turns_have_rewards():
  rewards = lambda *samples: [b["reward"] for b in shown_completion(*samples)["blocks"][::2]]
  only_last = episode(7, turn_rewards=[0.0, 0.0, 1.0])
  assert rewards(only_last) == [None, None, 1.0]
  assert rewards(only_last, episode(8)) == [0.0, 0.0, 1.0]
  assert rewards(episode(7, turn_rewards=[0.0, math.nan, 1.0])) == [0.0, None, 1.0]


def test_turns_without_an_answer_between_them_have_no_number():
  completion = shown_completion(episode(7, turn_rewards=[1.0] * 4))
  assert {(b["turn"], b["reward"]) for b in completion["blocks"]} == {(None, None)}
  assert completion["turns"] == 4
  older = episode(7)
  del older["completions"][0]["turn_rewards"]
  assert [b["turn"] for b in shown_completion(older)["blocks"]] == [1, None, 2, None, 3]


def test_a_long_episode_goes_on_behind_what_is_left_out():
  versions = [1] * 500 + [None] * 1000 + [2]
  [first, before, behind, last] = episodes.blocks(
    ["x"] * 1501, versions, [0.0, 1.0], [*range(700), *range(1200, 1501)]
  )
  assert first == block(True, 1, 0.0, [500, False])
  assert before == block(False, None, None, [200, False])
  assert behind == block(False, None, None, [300, False], continued=True)
  assert last == block(True, 2, 1.0, [1, False])


@pytest.mark.parametrize(
  ("pieces", "called"),
  [
    (["<tool_call>", "{}", "</tool_call>", "\n", "<tool_call>x</tool_call>"], "11101"),
    (["a <tool", "_call>x</tool_call> b", "c"], "110"),
    (["<tool_call>", "x"], "00"),  # never closed
    (["so:\n", "```tool_code\n", "f()", "\n```", "<end_of_turn>"], "01110"),
    (["<|python_tag|>", '{"name": 1}', '; {"name": "f"}', "<|eom_id|>", "\n"], "11100"),
    (['{"name": 1}', " and words"], "00"),
    (['{"no": 1}'], "0"),
    (["{" * 5000], "0"),
    (["[f(a=1", "), g.h()]", "<eos>"], "110"),
    (["[1, 2]"], "0"),
    (["f()"], "0"),
    (["", "<eos>"], "00"),
  ],
)
def test_calls_of_tools_stand_out(pieces, called):
  shown = range(len(pieces) + 1)
  found, _ = episodes.blocks([*pieces, "!"], [0] * len(pieces) + [None], [], shown)
  assert "".join(str(int(is_call)) * size for size, is_call in found["parts"]) == called
  answer = episodes.blocks(["!", *pieces], [0] + [None] * len(pieces), [], shown)[1]
  assert answer["parts"] == [[len(pieces), False]]


def test_long_completions_make_fewer_groups():
  samples = [sample(s, *"abcdefgh", tokens=1500) for s in range(9)]
  found = completions.for_browser(samples)["groups"]
  assert [group["step"] for group in found] == [0, 2, 4, 6, 8]
  assert len(document.embedded(found)) < 2e6


def test_a_configuration_is_compared_with_the_base(tiny_config):
  changed = {key: values for key, *values in configuration.changes(tiny_config.to_dict())}
  assert changed["learner.steps"] == ["100", "40"]
  assert changed["objective.beta"] == ["None", "0.5"] and "seed" not in changed
  assert configuration.changes({"seed": 0, "new": {"key": "x"}})[-1][0] == "warm_start.stop_loss"
  strange = configuration.differences([{"a": 1, "b": 2}, {"a": 1, "c": "x"}])
  assert strange == [("b", "2", "missing"), ("c", "missing", "'x'")]


def test_the_scripts_and_styles_are_part_of_the_package():
  listed = (ROOT / "setup.py").read_text()
  assert '"offpolicy_rl.report": ["*.css", "*.js"]' in listed


def two_runs(tmp_path):
  """Runs of different length, one key apart."""
  config = CONFIG | {"objective": {"name": "grpo"}}
  first = report_runs.write(
    tmp_path / "first",
    train=[(s, train_row(s, reward=0.25)) for s in range(20)],
    heldout=[(0, evaluation("before", 0, 0.1)), (20, evaluation("after", 20, 0.5))],
  )
  rows = [(s, train_row(s, reward=s / 10, mismatch__max=1e-5 * (s + 1))) for s in range(10)]
  return first, report_runs.write(tmp_path / "second", config=config, train=rows)


def test_runs_are_laid_over_one_another(tmp_path, capsys):
  first, second = two_runs(tmp_path)
  assert main.main(["report", f"--run_dir={first}", f"--run_dir={second}"]) == 0
  path = tmp_path / "comparison.html"
  assert capsys.readouterr().out == f"{path}\n"
  page = path.read_text()
  outline, charts = Outline(page), charts_of(page)
  assert [line["x"] for line in charts["Reward"]["lines"]] == [[*range(20)], [*range(10)]]
  assert charts["Reward"]["lines"][1]["y"][-1] == 0.9
  assert charts["Mismatch"]["lines"] == [  # the second run keeps its colour
    {"x": [*range(10)], "y": [pytest.approx(1e-5 * (s + 1)) for s in range(10)]}
  ]
  [mismatch] = re.findall("<b>Mismatch</b>.*?</figure>", page)
  assert 'class="c1 r1' in mismatch and "c0" not in mismatch
  assert outline.has("objective.name 'beta_shift' 'grpo'") and not outline.has("lag.mode")
  assert outline.has("first 20 0.500 0.020 0.500 0.600 0.25", "second 10 0.9")
  boxes = [attrs["data-run"] for tag, attrs in outline.elements if attrs.get("class") == "shown"]
  assert boxes == ["r0", "r1"]


def test_runs_of_the_same_name_are_told_apart(tmp_path):
  for parent in ("a", "b"):
    (tmp_path / parent).mkdir()
  dirs = [report_runs.write(tmp_path / parent / "run") for parent in ("a", "b")]
  page = report.compare(dirs, tmp_path / "both.html").read_text()
  assert Outline(page).has(str(dirs[0]), str(dirs[1]), "All keys are the same", "No step was made")


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--run_dir=first", "--run_dir=first"], "--run_dir: got the same run twice"),
    (["--run_dir=first", "--run_dir=nowhere"], "nowhere/config.json, expected the directory of a"),
    (["--run_dir=nowhere"], "nowhere/config.json, expected the directory of a run"),
    (["--run_dir=first", "--to=x.html"], "--to: expected only with several --run_dir"),
    ([f"--run_dir={i}" for i in range(9)], "--run_dir: got 9 runs, expected at most 8"),
  ],
)
def test_wrong_arguments_are_refused(tmp_path, monkeypatch, capsys, arguments, message):
  monkeypatch.chdir(tmp_path)
  two_runs(tmp_path)
  assert main.main(["report", *arguments]) == 2
  assert message in capsys.readouterr().err
  assert not list(tmp_path.glob("*.html"))


def test_a_comparison_goes_where_it_is_told(tmp_path):
  first, second = two_runs(tmp_path)
  target = tmp_path / "x.html"
  main.main(["report", f"--run_dir={first}", f"--run_dir={second}", f"--to={target}"])
  assert "first" in target.read_text()


def test_samplers_are_compared_over_all_their_completions():
  rows = [
    {
      "sampler/completions": {"a": 3, "<b>": 1},
      "sampler/reward": {"a": 1.0, "<b>": 0.5},
      "sampler/log_ratio": {"a": 0.01, "<b>": math.inf},
      "sampler/unlike": {"<b>": 9.0},
    },
    {"sampler/completions": {"a": 1}, "sampler/reward": {"a": 0.0}, "sampler/rates": {"a": 50.0}},
    {"step": 2},  # of an older release
  ]
  text = samplers.table(rows)
  waited = {"sampler/completions": {"a": 1}, "sampler/seconds_world": {"a": 2.5}}
  assert "seconds-world, seconds" in samplers.table([waited]) and "seconds-world" not in text
  cells = [re.findall(r">([^<>]*)</t[dh]>", row) for row in text.split("<tr>")[2:]]
  assert cells == [
    ["a", "4", "50", "0.75", "", "", "0.01", "", "0"],
    ["&lt;b&gt;", "1", "", "0.5", "", "", "", "", "1"],
  ]
  assert samplers.table([{"step": 2}]) == ""


def test_a_bar_tells_where_the_time_of_a_completion_went():
  """In the median step: the first one compiles."""
  rows = [{"ticket/lease": 90.0, "ticket/use": 90.0}]
  rows += [{"ticket/lease": 1.0, "ticket/use": 3.0}] * 3
  text = stages.section(rows)
  assert "A completion&#x27;s 4 s" in text or "A completion's 4 s" in text
  assert re.findall(r"flex-grow:([0-9.]+)", text) == ["0.25000", "0.75000"]
  cells = [re.findall(r">([^<>]*)</t[dh]>", row) for row in text.split("<tr>")[2:]]
  assert [row[:3] for row in cells] == [[" lease", "1", "25.0%"], [" use", "3", "75.0%"]]
  assert stages.section([{"step": 2}]) == ""
