// Steps through recorded groups. What runs have written is only ever set as text.
"use strict";

(() => {
  const browser = document.getElementById("browser");
  if (!browser) return;
  const { groups, range } = page.completions;
  const find = (id) => document.getElementById(id);
  const [at, list, colour, scale] = ["at", "list", "colour", "scale"].map(find);
  const POSITIVE = "47,109,181", NEGATIVE = "214,110,40", PLAIN = "133,87,176";
  const VERSIONS = ["47,109,181", "200,96,42", "46,139,87", "133,87,176", "184,52,74", "27,138,148"];
  let shown = 0, chosen = -1, tokens = [];

  function make(tag, css, text) {
    const element = document.createElement(tag);
    if (css) element.className = css;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  // rgba of a token, or "" where the run wrote nothing that colours it.
  function paint(token) {
    if (token.version === null) return "";
    if (colour.value === "version") return `rgba(${VERSIONS[token.version % VERSIONS.length]},.4)`;
    const nats = colour.value === "ratio" ? token.ratio : token.sampler;
    if (nats === undefined || nats === null) return "";
    if (colour.value === "sampler") return `rgba(${PLAIN},${(0.7 * Math.min(1, -nats / 5)).toFixed(3)})`;
    const strength = 0.7 * Math.min(1, Math.abs(nats) / range);
    return `rgba(${nats > 0 ? POSITIVE : NEGATIVE},${strength.toFixed(3)})`;
  }

  function nats(value) {
    if (value === undefined || value === null) return "unknown";
    return (value > 0 ? "+" : "") + value.toFixed(3);
  }

  function choose(number, scroll) {
    tokens[chosen]?.element.classList.remove("chosen");
    chosen = number;
    const token = tokens[number];
    if (!token) {
      find("token").textContent = "Point at a token, or use the keys: version, lag, log-probabilities.";
      return;
    }
    token.element.classList.add("chosen");
    const place = `${JSON.stringify(token.piece)}, token ${token.place} of completion ${token.completion}: `;
    if (scroll) token.element.scrollIntoView({ block: "nearest" });
    if (token.version === null) {
      find("token").textContent = `${place}written by the environment, not in the loss`;
      return;
    }
    const learner = token.ratio == null || token.sampler == null ? null : token.sampler + token.ratio;
    find("token").textContent =
      `${place}version ${token.version} (lag ${groups[shown].step - token.version}), log-probability ` +
      `sampler ${nats(token.sampler)}, learner ${nats(learner)}, log-ratio ${nats(token.ratio)}`;
  }

  function tokensOf(completion, number) {
    const versions = completion.versions.flatMap(([version, count]) => Array(count).fill(version));
    const line = make("div", "tokens");
    const head = completion.gap ? 700 : Infinity; // as completions.py cuts
    completion.pieces.forEach((piece, i) => {
      if (i === head) line.append(make("span", "mark", ` … ${completion.gap} tokens left out … `));
      for (const [, first, last] of completion.rewinds.filter(([at]) => at === i)) {
        line.append(make("span", "mark", ` ↶ tokens ${first} to ${last} are not read from here on `));
      }
      const policy = versions.slice(0, i).findLast((version) => version !== null);
      const newer = versions[i] !== null && policy !== undefined && versions[i] !== policy;
      const element = make("span", versions[i] === null ? "environment" : newer ? "newer" : "");
      element.textContent = piece === "" ? "·" : piece.replaceAll("\n", "⏎\n");
      const token = {
        element, piece, completion: number + 1, place: i + 1 + (i >= head ? completion.gap : 0),
        version: versions[i], ratio: thousandth(completion.ratios[i]),
        sampler: thousandth(completion.sampler[i]),
      };
      element.dataset.token = String(tokens.length);
      tokens.push(token);
      line.append(element);
    });
    return line;
  }

  function thousandth(value) {
    return value === undefined || value === null ? null : value / 1000;
  }

  function about(completion, number) {
    const row = make("div", "about");
    const reward = completion.reward;
    const css = reward === 1 ? "good" : reward <= 0 ? "bad" : "";
    row.append(make("span", "", `${number + 1}`));
    row.append(make("span", css, `reward ${reward === null ? "unknown" : format(reward)}`));
    if (completion.tokens !== null) row.append(make("span", "", `${completion.tokens} tokens`));
    const ends = { turns: "out of turns", tokens: "out of tokens", failed: "environment failed" };
    if (completion.ended) row.append(make("span", "", ends[completion.ended] || completion.ended));
    else if (completion.finished === false) row.append(make("span", "bad", "cut at the limit"));
    const used = [...new Set(completion.versions.map(([version]) => version))]
      .filter((version) => version !== null);
    row.append(make("span", "", `version ${used.join(", ")}`));
    if (completion.ratios.length && !completion.gap) {
      const sum = completion.ratios.reduce((a, b) => a + b, 0) / 1000;
      row.append(make("span", "", `log-ratio ${nats(sum)}`));
    }
    return row;
  }

  function legend() {
    scale.replaceChildren();
    const bar = (gradient) => {
      const element = make("i");
      element.style.background = gradient;
      return element;
    };
    if (colour.value === "ratio") {
      const gradient = `linear-gradient(to right, rgba(${NEGATIVE},.7), transparent, rgba(${POSITIVE},.7))`;
      const ends = make("span", "", `learner less likely, -${range}`);
      ends.append(bar(gradient), `+${range} nats, more likely`);
      scale.append(ends);
    } else if (colour.value === "sampler") {
      const ends = make("span", "", "certain, 0");
      ends.append(bar(`linear-gradient(to right, transparent, rgba(${PLAIN},.7))`), "-5 nats or less");
      scale.append(ends);
    } else {
      const versions = new Set(tokens.map((token) => token.version));
      versions.delete(null);
      for (const version of [...versions].sort((a, b) => a - b)) {
        const patch = make("span", "", "");
        const sample = bar(paint({ version }));
        sample.className = "patch";
        patch.append(sample, `version ${version}`);
        scale.append(patch);
      }
    }
    scale.append(make("span", "", "│ newer weights from here on"));
    if (tokens.some((token) => token.version === null)) {
      scale.append(make("span", "environment", "the environment"));
    }
  }

  function repaint() {
    for (const token of tokens) token.element.style.background = paint(token);
    legend();
  }

  function go(number) {
    shown = Math.min(Math.max(number, 0), groups.length - 1);
    const group = groups[shown];
    tokens = [];
    at.value = String(shown);
    at.setAttribute("aria-valuetext", `step ${group.step}`);
    find("earlier").disabled = shown === 0;
    find("later").disabled = shown === groups.length - 1;
    const arrival = group.arrival === null ? "" : `, arrived at version ${group.arrival}`;
    find("where").textContent =
      `step ${group.step}, ${shown + 1} of ${groups.length} shown${arrival}`;
    find("prompt").textContent = group.prompt;
    list.replaceChildren(...group.completions.map((completion, i) => {
      const article = make("article", "completion");
      article.append(about(completion, i), tokensOf(completion, i));
      return article;
    }));
    choose(-1);
    repaint();
  }

  at.max = String(groups.length - 1);
  at.addEventListener("input", () => go(Number(at.value)));
  find("earlier").addEventListener("click", () => go(shown - 1));
  find("later").addEventListener("click", () => go(shown + 1));
  colour.addEventListener("change", repaint);
  list.addEventListener("pointerover", (event) => {
    if (event.target.dataset.token) choose(Number(event.target.dataset.token));
  });
  list.addEventListener("click", (event) => {
    if (event.target.dataset.token) choose(Number(event.target.dataset.token));
  });
  browser.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target === colour) return;
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (way === undefined) return;
    event.preventDefault();
    if (event.shiftKey) choose(Math.min(Math.max(chosen + way, 0), tokens.length - 1), true);
    else go(shown + way);
  });
  go(groups.length - 1);
})();
