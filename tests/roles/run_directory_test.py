"""With which configuration a run goes on, what is never written over, and whose a directory is."""

import json
import pathlib
import threading
import types

import pytest

from offpolicy_rl import config as config_lib
from offpolicy_rl import files
from offpolicy_rl.cli import flags as flags_lib
from offpolicy_rl.cli import main, training
from offpolicy_rl.roles import leader, run_directory
from offpolicy_rl.system import locks

CARD = "configs/test.py"


def card(**changed):
  """The card, with keys of the learner's changed."""
  config = config_lib.load(CARD)
  config_lib.override(config, [(f"learner.{key}", str(value)) for key, value in changed.items()])
  return config


def leave_run(run_dir, *, checkpoints=None, made=3, **changed) -> pathlib.Path:
  """What a run leaves that the command line looks at; where its checkpoints are."""
  where = run_directory.from_flags(str(run_dir), checkpoints and str(checkpoints))
  (where.checkpoints / "steps" / "2").mkdir(parents=True)
  (where.checkpoints / "steps" / "2" / "commit.json").write_text("{}")
  run_dir.mkdir(exist_ok=True)
  text = config_lib.to_json(card(**changed))
  for folder in where:
    (folder / "config.json").write_text(text)
  rows = [json.dumps({"kind": "train", "step": i}) for i in range(made)]
  (run_dir / "metrics.jsonl").write_text("\n".join(rows) + "\n")
  return where.checkpoints


def parsed(*flags: str):
  return flags_lib.parser("").parse_args(["learner", *flags])


def configured(*flags: str):
  """(configuration, lines about it) of a command line."""
  keys = [flag for flag in flags if flag.startswith("--config.")]
  others = parsed(*[flag for flag in flags if flag not in keys])
  return training.configuration(others, [flags_lib.key_and_text(key) for key in keys])


def refused(capsys, *flags: str) -> str:
  """What a learner says that must not start."""
  assert main.main(["learner", *flags]) == 2
  return capsys.readouterr().err


def test_the_day_that_a_run_has_filled_in_stays_without_a_word(tmp_path):
  """Prompts of templates that write the date are the same on every day of the run."""
  leave_run(tmp_path / "run")
  path = tmp_path / "run" / "checkpoints" / "config.json"
  saved = json.loads(path.read_text())
  saved["task"]["chat_date"] = "2003-02-01"
  path.write_text(json.dumps(saved))
  config, said = configured("--resume", f"--run_dir={tmp_path}/run", f"--config={CARD}")
  assert (config.task.chat_date, said) == ("2003-02-01", [])
  with pytest.raises(config_lib.ConfigError, match="task.chat_date: got '2004-01-01', expected"):
    configured("--resume", f"--run_dir={tmp_path}/run", "--config.task.chat_date=2004-01-01")


def test_a_run_goes_on_with_its_own_configuration(tmp_path):
  leave_run(tmp_path / "run", learning_rate=5e-4, steps=7)
  alone, said = configured("--resume", f"--run_dir={tmp_path}/run")
  assert (alone.learner.learning_rate, alone.learner.steps, said) == (5e-4, 7, [])
  with_card, said = configured("--resume", f"--run_dir={tmp_path}/run", f"--config={CARD}")
  assert with_card == alone
  theirs = card().learner
  assert sorted(said) == [
    f"learner.learning_rate: 0.0005, from the run; {CARD} has {theirs.learning_rate} "
    f"(to change it: --config.learner.learning_rate={theirs.learning_rate})",
    f"learner.steps: 7, from the run; {CARD} has {theirs.steps} "
    f"(to change it: --config.learner.steps={theirs.steps})",
  ]


def test_a_flag_changes_it_and_is_said(tmp_path, capsys):
  leave_run(tmp_path / "run", steps=7)
  run = ("--resume", f"--run_dir={tmp_path}/run")
  config, said = configured(*run, "--config.learner.steps=9")
  assert config.learner.steps == 9 and said == ["learner.steps: 9 from now on, was 7"]
  with_card = configured(*run, f"--config={CARD}", "--config.learner.steps=9")
  assert with_card == (config, said), "not what the card says of that key"
  assert "seed: got 5, expected 0 as the run to resume" in refused(capsys, *run, "--config.seed=5")


def test_keys_that_came_or_went_with_a_release(tmp_path):
  run, now = card(steps=7).to_dict(), card()
  del run["learner"]["max_grad_norm"]
  run["learner"]["old"] = 3
  found, said = run_directory.merge(config_lib.from_json(json.dumps(run)), now, "CARD")
  config_lib.validate(found)
  assert found.learner.max_grad_norm == now.learner.max_grad_norm and found.learner.steps == 7
  assert any(line.startswith("learner.max_grad_norm: ") and "from CARD" in line for line in said)
  assert any(line.startswith("learner.old: ignored") for line in said)


def test_a_run_from_before_a_key_goes_on_with_the_keys_value(tmp_path):
  """Also a frozen one, such as task.judge_unfinished, and without a card."""
  where = leave_run(tmp_path / "run").parent
  for file in where.rglob("config.json"):
    saved = json.loads(file.read_text())
    del saved["task"]["judge_unfinished"], saved["learner"]["epochs"]
    file.write_text(json.dumps(saved))
  resume = (f"--run_dir={tmp_path / 'run'}", "--resume")
  for given, source in (((), "configs/base.py"), ((f"--config={CARD}",), CARD)):
    config, said = configured(*resume, *given)
    assert (config.task.judge_unfinished, config.learner.epochs) == (False, 1)
    for key in ("task.judge_unfinished: False", "learner.epochs: 1"):
      assert f"{key}, from {source}; the run began without this key" in said
    assert len(said) == 2


def test_a_run_from_before_a_key_can_be_begun_anew_and_replayed(tmp_path):
  """With its config.json, with --restart, and from its recording."""
  leave_run(tmp_path / "run")
  saved = json.loads((tmp_path / "run" / "config.json").read_text())
  del saved["task"]["judge_unfinished"], saved["learner"]["epochs"]
  for file in (tmp_path / "run").rglob("config.json"):
    file.write_text(json.dumps(saved))
  recording = tmp_path / "lag_schedule.jsonl"
  recording.write_text(json.dumps({"config": saved}) + "\n")
  for flags in (
    (f"--config={tmp_path}/run/config.json",),
    (f"--run_dir={tmp_path}/run", "--restart"),
    (f"--replay={recording}",),
  ):
    config, _ = configured(*flags)
    assert (config.task.judge_unfinished, config.learner.epochs) == (False, 1)


def test_on_a_new_host_the_checkpoints_say_what_may_not_change(tmp_path, capsys):
  shared = leave_run(tmp_path / "old", checkpoints=tmp_path / "shared", steps=7)
  here = ("--resume", f"--run_dir={tmp_path}/new", f"--checkpoint_dir={shared}", f"--config={CARD}")
  assert configured(*here)[0].learner.steps == 7
  for flag in ("seed=5", "learner.prompts_per_step=4"):
    assert f"{flag.partition('=')[0]}: got" in refused(capsys, *here, f"--config.{flag}")
  assert not (tmp_path / "new").exists()


def test_resume_of_what_has_not_begun_takes_the_card(tmp_path):
  """As schedulers do, which always say --resume."""
  (tmp_path / "run").mkdir()
  config, said = configured("--resume", f"--run_dir={tmp_path}/run", f"--config={CARD}")
  assert config == card() and said == []
  (tmp_path / "run" / "config.json").write_text(config_lib.to_json(card(steps=5)))
  assert configured("--resume", f"--run_dir={tmp_path}/run")[0].learner.steps == 5
  assert configured("--resume", f"--run_dir={tmp_path}/run", f"--config={CARD}")[0] == card()


@pytest.mark.parametrize(
  ("recorded", "message"),
  [
    ({"items": 1}, "'items': unknown key"),
    ({"lag": 5}, "'lag': unknown key"),
    ({"a.b": 1}, "configuration: "),
    ([], "configuration: got list"),
  ],
)
def test_a_recording_without_a_configuration_is_refused_by_name(
  tmp_path, capsys, recorded, message
):
  file = tmp_path / "lag_schedule.jsonl"
  file.write_text(json.dumps({"config": recorded}) + "\n")
  assert f"--replay: {file}: {message}" in refused(capsys, f"--replay={file}")


@pytest.mark.parametrize("flag", ["run_dir", "checkpoint_dir"])
@pytest.mark.parametrize("below", ["", "/run"])
def test_a_directory_that_can_not_be_one_is_refused_by_its_flag(tmp_path, capsys, flag, below):
  (tmp_path / "file").write_text("")
  (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
  for name in ("file", "nowhere"):
    places = {"run_dir": f"{tmp_path}/run", flag: f"{tmp_path}/{name}{below}"}
    flags = [f"--{key}={value}" for key, value in places.items()]
    said = refused(capsys, f"--config={CARD}", *flags)
    assert f"--{flag}: got '{tmp_path}/{name}{below}', expected a directory" in said
    assert f"{tmp_path}/{name} is none" in said


@pytest.mark.parametrize("part", ["steps", "initial", "weights"])
def test_a_file_where_a_run_has_a_directory_is_refused_by_the_flag(tmp_path, capsys, part):
  flag = "weights_dir" if part == "weights" else "checkpoint_dir"
  (tmp_path / part).write_text("")
  place = tmp_path / part if part == "weights" else tmp_path
  said = refused(capsys, f"--config={CARD}", f"--run_dir={tmp_path}/run", f"--{flag}={place}")
  assert f"--{flag}: got '{tmp_path / part}', expected a directory" in said
  assert "Errno" not in said and not (tmp_path / "run").exists()


def test_a_run_is_never_written_over(tmp_path, capsys):
  checkpoints = leave_run(tmp_path / "run")
  run = (f"--config={CARD}", f"--run_dir={tmp_path}/run")
  assert "already has a run" in refused(capsys, *run)
  (checkpoints / "steps" / "2").rename(checkpoints / "steps" / "2.damaged")
  assert "already has a run" in refused(capsys, *run)
  (checkpoints / "steps").rename(tmp_path / "away")
  for flags in (run, (*run, "--resume"), run[1:]):
    assert "--restart" in refused(capsys, *flags, *(["--resume"] if flags == run[1:] else []))
  assert "has 3 steps, but there is no checkpoint" in refused(capsys, *run, "--resume")
  (tmp_path / "run" / "metrics.jsonl").write_text('{"kind": "warm_start", "step": 4}\n')
  assert configured(*run)[0] == card()  # ended before there was anything to keep


def test_restart_keeps_what_was_there(tmp_path):
  leave_run(tmp_path / "run", steps=7)
  arguments = parsed("--restart", f"--run_dir={tmp_path}/run")
  config, said = training.configuration(arguments, [])
  assert config.learner.steps == 7 and said == []
  where = run_directory.from_flags(f"{tmp_path}/run", None)
  with run_directory.claimed(where, None, resume=False, restart=True, lost=print):
    left = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert [name.partition("-")[0] for name in left] == ["before", "checkpoints", "lock.json"]
    [kept] = (tmp_path / "run").glob("before-*")
    assert (kept / "metrics.jsonl").exists()
    [kept] = (tmp_path / "run" / "checkpoints").glob("before-*")
    assert (kept / "steps" / "2" / "commit.json").exists() and (kept / "config.json").exists()
  assert (
    training.configuration(parsed(f"--config={CARD}", f"--run_dir={tmp_path}/run"), [])[0] == card()
  )


@pytest.mark.parametrize("flag", ["run_dir", "checkpoint_dir", "weights_dir"])
def test_a_directory_at_work_is_refused_and_left_as_it_is(tmp_path, capsys, flag):
  taken, flags = tmp_path / "taken", {"run_dir": tmp_path / "run"}
  flags[flag] = taken
  with locks.hold(str(taken), "--test", print):
    before = (taken / locks.FILE).read_bytes()
    line = ["learner", f"--config={CARD}", *(f"--{name}={path}" for name, path in flags.items())]
    assert main.main(line) == 1
    said = capsys.readouterr().err
    assert f"--{flag}: a learner is at work in {taken} (host " in said and "Traceback" not in said
    assert [path.name for path in taken.iterdir()] == [locks.FILE]
    assert (taken / locks.FILE).read_bytes() == before


def test_runs_of_one_second_have_directories_of_their_own(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(training.time, "strftime", lambda _: "NOW")
  arguments, found = parsed("--config=cards/mine.py"), []

  def claim():
    with training.new_run_directory(arguments) as run_dir:
      (run_dir / "file").write_text("")
      found.append(str(run_dir))

  both = [threading.Thread(target=claim) for _ in range(2)]
  for thread in both:
    thread.start()
  for thread in both:
    thread.join()
  assert sorted(found) == ["runs/mine-NOW", "runs/mine-NOW-2"]
  with training.new_run_directory(parsed("--config=runs/mine-NOW/config.json")) as run_dir:
    assert run_dir.name == "mine-NOW-NOW"
  assert not run_dir.exists()  # nothing came of it


def test_what_was_made_is_kept_where_its_name_was_taken_meanwhile(tmp_path):
  target = tmp_path / "eval"
  refused = pytest.raises(FileExistsError, match=r"the result is in .*eval-2")
  with refused, files.new_directory(target) as half:
    (half / "mine").write_text("")
    target.mkdir()
    (target / "theirs").write_text("")
  assert [path.name for path in (tmp_path / "eval-2").iterdir()] == ["mine"]
  assert sorted(path.name for path in tmp_path.iterdir()) == ["eval", "eval-2"]


class Finishing:
  """As much of a learner as its end needs."""

  def __init__(self, restored):
    self.calls, self.restored, self.stop = [], restored, threading.Event()
    note = lambda name: lambda *args, **named: self.calls.append((name, args)) or True
    self.request_evaluation, self.say = note("request"), note("say")
    self.evaluations = types.SimpleNamespace(collect=note("collect"), pending=list)
    self.checkpoints = types.SimpleNamespace(amend=note("amend"))
    self.files = types.SimpleNamespace(position=lambda: {"metrics": 7})
    self.screen = types.SimpleNamespace(stop=lambda: None)
    self._report_unanswerable = lambda: None


@pytest.mark.parametrize(
  ("restored", "evaluates"),
  [(None, True), ((4, True), True), ((9, False), True), ((9, True), False)],
)
def test_the_last_evaluation_is_made_once_and_kept(restored, evaluates):
  before = restored and types.SimpleNamespace(step=restored[0], done=restored[1])
  ending = Finishing(before)
  leader.Leader.finish(ending, 9)
  if evaluates:
    assert [name for name, _ in ending.calls] == ["request", "collect", "amend"]
    position = {"files": {"metrics": 7}, "evaluations": [], "done": True}
    assert ending.calls[-1][1] == (9, position)  # one that was open at the checkpoint is closed
  else:
    assert [name for name, _ in ending.calls] == ["say"]
