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
  const ENDS = {
    turns: "out of turns",
    tokens: "out of tokens",
    time: "environment out of time",
    failed: "environment failed",
  };
  const HEAD = 700; // tokens in front of a gap, as in completions.py
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
      find("token").textContent = "Point at a token or tap it: version, lag, log-probabilities.";
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
    return completion.pieces.map((piece, i) => {
      const policy = versions.slice(0, i).findLast((version) => version !== null);
      const newer = versions[i] !== null && policy !== undefined && versions[i] !== policy;
      const element = make("span", newer ? "newer" : "");
      element.textContent = piece === "" ? "·" : piece.replaceAll("\n", "⏎\n");
      element.dataset.token = String(tokens.length + i);
      return {
        element, piece, completion: number + 1, place: i + 1 + (i >= HEAD ? completion.gap : 0),
        version: versions[i], ratio: thousandth(completion.ratios[i]),
        sampler: thousandth(completion.sampler[i]),
      };
    });
  }

  // In front of a token: that some are left out, and that the context goes back.
  function marks(completion, i) {
    const texts = completion.gap && i === HEAD ? [`… ${completion.gap} tokens left out …`] : [];
    for (const [, first, last] of completion.rewinds.filter(([at]) => at === i)) {
      texts.push(`↶ tokens ${first} to ${last} are not read from here on`);
    }
    return texts.map((text) => make("span", "mark", ` ${text} `));
  }

  function oneRun(completion, written) {
    const line = make("div", "tokens");
    written.forEach((token, i) => line.append(...marks(completion, i), token.element));
    return line;
  }

  // Blocks as episodes.py makes them.
  function conversation(completion, written) {
    const talk = make("div", "talk");
    let at = 0;
    for (const block of completion.blocks) {
      const first = at;
      at += block.parts.reduce((sum, [count]) => sum + count, 0);
      talk.append(...marks(completion, first), turn(block, written.slice(first, at)));
    }
    talk.append(end(completion));
    return talk;
  }

  function turn(block, written) {
    const line = make("div", "tokens"), elements = written.map((token) => token.element);
    for (const [count, isCall] of block.parts) {
      const place = isCall ? line.appendChild(make("div", "call")) : line;
      place.append(...elements.splice(0, count));
    }
    const isBrief = line.textContent.length < 16 && !line.querySelector(".call");
    const css = `turn${block.policy ? " policy" : ""}${isBrief ? " brief" : ""}`;
    const section = make("section", css);
    section.append(author(block, written), line);
    return section;
  }

  function author(block, written) {
    const words = [block.policy ? "policy" : "environment"];
    if (block.turn !== null) words.push(`turn ${block.turn}`);
    if (block.continued) words.push("continued");
    if (block.policy) words.push(versionsOf(written.map((token) => token.version)));
    const heading = make("h3", "", words.join(", "));
    if (block.reward !== null) {
      const css = block.reward > 0 ? "good" : block.reward < 0 ? "bad" : "";
      heading.append(" ", make("span", css, `reward ${format(block.reward)}`));
    }
    return heading;
  }

  function end(completion) {
    const { turns } = completion;
    const after = turns ? ` after ${turns} turn${turns > 1 ? "s" : ""}` : "";
    const why = ENDS[completion.ended] || completion.ended || "not known why";
    const line = make("p", "end", `Ended${after}: `);
    line.append(make("span", /^(time|failed)$/.test(completion.ended) ? "bad" : "", why));
    line.append(", ", rewardOf(completion.reward));
    return line;
  }

  function versionsOf(versions) {
    const used = [...new Set(versions)].filter((version) => version !== null);
    return `version${used.length > 1 ? "s" : ""} ${used.join(", ")}`;
  }

  function rewardOf(reward) {
    const css = reward === 1 ? "good" : reward <= 0 ? "bad" : "";
    return make("span", css, `reward ${reward === null ? "unknown" : format(reward)}`);
  }

  // The token closest to a click or a finger among those of the same text.
  function closest({ target, clientX: x, clientY: y }) {
    const elements = [...target.closest(".tokens")?.querySelectorAll("[data-token]") ?? []];
    const distances = elements.map((element) => {
      const { left, right, top, bottom } = element.getBoundingClientRect();
      return Math.hypot(Math.max(left - x, 0, x - right), Math.max(top - y, 0, y - bottom));
    });
    return elements[distances.indexOf(Math.min(...distances))];
  }

  function step(way) {
    choose(Math.min(Math.max(chosen + way, 0), tokens.length - 1), true);
  }

  function thousandth(value) {
    return value === undefined || value === null ? null : value / 1000;
  }

  function about(completion, number) {
    const row = make("div", "about");
    row.append(make("span", "", `${number + 1}`), rewardOf(completion.reward));
    if (completion.tokens !== null) row.append(make("span", "", `${completion.tokens} tokens`));
    if (completion.ended) row.append(make("span", "", ENDS[completion.ended] || completion.ended));
    else if (completion.finished === false) row.append(make("span", "bad", "cut at the limit"));
    row.append(make("span", "", versionsOf(completion.versions.map(([version]) => version))));
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
      const written = tokensOf(completion, i);
      tokens.push(...written);
      const show = completion.blocks.length ? conversation : oneRun;
      article.append(about(completion, i), show(completion, written));
      return article;
    }));
    choose(-1);
    repaint();
  }

  at.max = String(groups.length - 1);
  at.addEventListener("input", () => go(Number(at.value)));
  find("earlier").addEventListener("click", () => go(shown - 1));
  find("later").addEventListener("click", () => go(shown + 1));
  find("before").addEventListener("click", () => step(-1));
  find("after").addEventListener("click", () => step(1));
  colour.addEventListener("change", repaint);
  list.addEventListener("pointerover", (event) => {
    const number = event.target.dataset.token;
    if (number && event.pointerType !== "touch") choose(Number(number));
  });
  list.addEventListener("click", (event) => {
    const token = event.target.dataset.token ? event.target : closest(event);
    if (token) choose(Number(token.dataset.token));
  });
  browser.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target === colour) return;
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (way === undefined) return;
    event.preventDefault();
    if (event.shiftKey) step(way);
    else go(shown + way);
  });
  go(groups.length - 1);
})();
