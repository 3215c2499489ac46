"""The faults that mutations.py puts in, one after the other."""

from typing import NamedTuple


class Fault(NamedTuple):
  """One line that is wrong."""

  file: str  # in the package
  old: str  # stands there exactly once
  new: str
  test: str  # in tests/, "file::function"


FAULTS = {
  # Losses.
  "regularizer_sign": Fault(
    "losses/pessimism.py",
    "return shift * (advantages",
    "return -shift * (advantages",
    "losses/pessimism_test.py::test_regression_plus_regularizer_is_the_shifted_regression",
  ),
  "mask": Fault(
    "losses/masked.py",
    "jnp.sum(jnp.where(mask, x, 0), axis=axis)",
    "jnp.sum(x, axis=axis)",
    "losses/masked_test.py::test_sums_means_and_largest_values_leave_out_what_is_masked",
  ),
  "baseline_of_the_batch": Fault(
    "losses/advantages.py",
    "centred = rewards - masked.group_mean(rewards, group_ids)",
    "centred = rewards - jnp.mean(rewards)",
    "losses/objectives_test.py::test_value_and_gradient_match_slow_numpy",
  ),
  "clip_below": Fault(
    "losses/ratios.py",
    "jnp.where(ratio < low, low, jnp.where(ratio > high, high, ratio))",
    "jnp.where(ratio > high, high, ratio)",
    "losses/objectives_test.py::test_value_and_gradient_match_slow_numpy",
  ),
  "row_weights": Fault(
    "losses/masked.py",
    "weight = 1.0 / (rows * jnp.maximum(tokens, 1))",
    "weight = 1.0 / jnp.maximum(tokens, 1)",
    "losses/objectives_test.py::test_value_and_gradient_match_slow_numpy",
  ),
  "moment_of_all_tokens": Fault(
    "losses/batch_weights.py",
    "judged = judged & (advantages[:, None] * anchor_log_ratio > 0)",
    "judged = judged & (advantages[:, None] != 0)",
    "losses/objectives_test.py::test_value_and_gradient_match_slow_numpy",
  ),
  "veto_of_the_trigger_itself": Fault(
    "losses/weights.py",
    "behind = jnp.cumsum(trigger, axis=-1) > trigger",
    "behind = jnp.cumsum(trigger, axis=-1) > 0",
    "losses/objectives_test.py::test_value_and_gradient_match_slow_numpy",
  ),
  "teacher_that_is_avoided": Fault(
    "losses/functions.py",
    "gap = ratios.log_ratio(teacher_logprobs, policy_logprobs, loss_mask)",
    "gap = ratios.log_ratio(policy_logprobs, teacher_logprobs, loss_mask)",
    "learner/teacher_test.py::test_a_policy_becomes_its_teacher_from_what_older_versions_wrote",
  ),
  "clip_that_does_not_adapt": Fault(
    "losses/batch_weights.py",
    "return positive >= positive_share * (positive + negative)",
    "return positive >= 0",
    "losses/objectives_test.py::test_value_and_gradient_match_slow_numpy",
  ),
  # The learner.
  "audit_of_every_version": Fault(
    "learner/step.py",
    "same = batch.loss_mask & (batch.versions == version)",
    "same = batch.loss_mask",
    "learner/step_test.py::test_the_audit_compares_the_version_that_sampled",
  ),
  "full_steps_whatever_the_sample_size": Fault(
    "learner/step.py",
    "jnp.where(finite, scale, 1.0) * x",
    "x",
    "learner/step_test.py::test_the_step_shrinks_with_the_effective_sample_size",
  ),
  "uncommitted_checkpoint": Fault(
    "learner/checkpoint.py",
    "if p.name.isdigit() and (p / _COMMIT).exists()",
    "if p.name.isdigit()",
    "learner/checkpoint_test.py::test_an_uncommitted_checkpoint_does_not_count",
  ),
  "damaged_checkpoint": Fault(
    "learner/checkpoint.py",
    'if files.sha256(path) != expected["sha256"]:',
    "if False:",
    "learner/checkpoint_test.py::test_a_damaged_file_is_named_and_the_checkpoint_before_used",
  ),
  "oldest_checkpoints_kept": Fault(
    "learner/checkpoint.py",
    "self.steps()[-self._keep :][0]",
    "self.steps()[: self._keep][0]",
    "learner/checkpoint_test.py::test_only_the_newest_are_kept",
  ),
  "published_without_a_copy": Fault(
    "roles/weights.py",
    "policy_lib.flatten(policy_lib.copy(params, self._dtype))",
    "policy_lib.flatten(jax.tree.map(lambda x: x.astype(self._dtype), params))",
    "roles/learner_test.py::test_published_weights_stay_when_their_parameters_are_donated",
  ),
  "resumed_files": Fault(
    "roles/run_files.py",
    'schedule.FILE, at("schedule"))',
    'schedule.FILE, at("metrics"))',
    "roles/run_files_test.py::test_a_resumed_run_writes_the_same_files",
  ),
  "frozen_keys": Fault(
    "config/check.py",
    "if must_stay and value != before[key]:",
    "if False:",
    "config/check_test.py::test_a_resumed_run_keeps_what_its_groups_rest_on",
  ),
  # Tickets and groups.
  "lag_bound": Fault(
    "replay/lag.py",
    "return max(0, step - self.bound), step",
    "return max(0, step - self.bound - 1), step",
    "replay/lag_test.py::test_no_admitted_version_exceeds_the_bound_or_comes_from_the_future",
  ),
  "lease_expiry": Fault(
    "replay/leases.py",
    "lambda _, lease: lease.deadline < now",
    "lambda _, lease: False",
    "replay/ledger_test.py::test_an_expired_lease_goes_back_to_the_front",
  ),
  "heartbeat": Fault(
    "replay/leases.py",
    "lease.deadline = now + self._seconds",
    "lease.deadline = lease.deadline",
    "replay/ledger_test.py::test_a_heartbeat_keeps_a_lease",
  ),
  "versions_of_a_lease": Fault(
    "replay/ledger.py",
    "if new_low > new_high:",
    "if False:",
    "replay/ledger_test.py::test_a_lease_holds_only_tickets_that_one_version_can_serve",
  ),
  "duplicate_answers": Fault(
    "replay/ledger.py",
    "if ticket_id in self._taken or ticket_id in self._finished:",
    "if ticket_id in self._taken:",
    "replay/ledger_test.py::test_the_first_answer_wins_and_the_second_is_a_duplicate",
  ),
  "refusals": Fault(
    "replay/ledger.py",
    "_REFUSALS = 2",
    "_REFUSALS = 1",
    "replay/ledger_test.py::test_a_declined_ticket_goes_to_others_and_after_two_of_them_to_nobody",
  ),
  "prune": Fault(
    "replay/store.py",
    'old = [key for key in keys if key.partition(b"/")[2] not in kept]',
    "old = list(keys)",
    "replay/store_test.py::test_pruning_drops_earlier_steps_but_what_is_still_asked_for",
  ),
  "signal_in_shaped_rewards": Fault(
    "replay/dynamic_sampling.py",
    "[t.verdict for t in group.trajectories]",
    "[t.reward for t in group.trajectories]",
    "replay/dynamic_sampling_test.py::test_shaping_is_no_signal",
  ),
  "spare_prompts": Fault(
    "replay/admission.py",
    "return types.FIRST_SPARE + group * SPARES + spare",
    "return types.FIRST_SPARE + spare",
    "replay/unanswerable_test.py::test_spares_are_prompts_of_their_own_with_the_lag_of_their_step",
  ),
  "reward_and_verdict": Fault(
    "replay/batching.py",
    "= trajectory.reward, trajectory.verdict",
    "= trajectory.verdict, trajectory.reward",
    "replay/batching_test.py::test_what_was_recorded_is_by_completion",
  ),
  "shift_of_logprobs": Fault(
    "replay/packing.py",
    "= np.arange(at - 1, columns.stop - 1)",
    "= np.arange(at, columns.stop)",
    "replay/packing_test.py::test_every_scored_token_sees_its_prompt_and_its_own_past",
  ),
  # The model.
  "segments": Fault(
    "model/decoder.py",
    "return earlier & (columns[None, :, None] < ends_BxT[:, None, :]), behind",
    "return earlier & (ends_BxT[:, None, :] > 0), behind",
    "replay/packing_test.py::test_the_model_says_the_same_of_all_layouts",
  ),
  "future": Fault(
    "model/decoder.py",
    "positions_BxT, behind >= 0, behind)",
    "positions_BxT, behind >= -9, behind)",
    "model/decoder_test.py::test_no_token_sees_the_future",
  ),
  "future_in_packed_rows": Fault(
    "model/decoder.py",
    "earlier = (columns[:, None] >= columns[None, :])[None]",
    "earlier = (columns[:, None] >= 0)[None]",
    "model/decoder_test.py::test_token_stats_are_shifted_by_one_and_use_the_temperature",
  ),
  "rope": Fault(
    "model/rope.py",
    "b * cos + a * sin",
    "b * cos - a * sin",
    "model/decoder_test.py::test_logits_match_numpy",
  ),
  "cache_position": Fault(
    "model/paging.py",
    "heads_K, (positions_BxT % size)[..., None])",
    "heads_K, ((positions_BxT + 1) % size)[..., None])",
    "model/decoder_test.py::test_prefill_and_decode_through_the_cache_equal_the_full_pass",
  ),
  "temperature_of_the_learner": Fault(
    "model/policy.py",
    "jax.nn.log_softmax(logits / temperature)",
    "jax.nn.log_softmax(logits)",
    "model/decoder_test.py::test_token_stats_are_shifted_by_one_and_use_the_temperature",
  ),
  "adapter_scale": Fault(
    "model/lora.py",
    "return config.lora_alpha / config.lora_rank",
    "return config.lora_alpha",
    "model/lora_test.py::test_merging_is_w_plus_alpha_over_rank_a_b",
  ),
  # The sampler.
  "temperature_of_the_sampler": Fault(
    "sampler/sampling.py",
    "scores = logits / jnp.where(greedy, 1.0, temperature)",
    "scores = logits",
    "sampler/sampling_test.py::test_draws_follow_the_distribution_that_is_recorded",
  ),
  "key_of_a_completion": Fault(
    "sampler/generation.py",
    "ticket.group_index, completion, turn\n",
    "ticket.group_index, 0, turn\n",
    "sampler/engine_test.py::test_seed_kind_group_and_completion_each_change_the_sample",
  ),
  "key_of_a_turn": Fault(
    "sampler/generation.py",
    "jnp.where(numbers[3] > 0, later, key)",
    "key",
    "sampler/engine_turns_test.py::test_turns_have_keys_of_their_own",
  ),
  "recorded_replies": Fault(
    "environments/episodes.py",
    "min(self._limit(episode), rest.size - tokens.size)",
    "self._limit(episode)",
    "environments/episodes_test.py::test_what_was_said_is_said_again_without_an_environment",
  ),
  "environment_of_a_prompt": Fault(
    "evaluation/requests.py",
    "environment=example.environment,",
    "",
    "mixed_turns_test.py::test_each_member_is_answered_and_judged_in_its_own_way",
  ),
  "replies_that_wait_for_pages": Fault(
    "sampler/engine.py",
    "self._resuming and self._can_start <",
    "self._resuming and len(self._ready) <",
    "sampler/engine_turns_test.py::test_completions_of_one_turn_beside_episodes_are_as_without_them",
  ),
  "what_an_environment_wrote": Fault(
    "replay/batching.py",
    "batch.loss_mask[at][:size] = trajectory.sampled",
    "batch.loss_mask[at][:size] = True",
    "replay/batching_test.py::test_what_an_environment_wrote_is_read_and_not_in_the_loss",
  ),
  "key_of_a_token": Fault(
    "sampler/generation.py",
    "keys = jax.vmap(jax.random.fold_in)(slots.keys, slots.lengths)",
    "keys = slots.keys",
    "sampler/engine_test.py::test_every_token_has_a_key_of_its_own",
  ),
  "position_of_a_token": Fault(
    "sampler/generation.py",
    "position=slots.position + slots.running,",
    "position=slots.position,",
    "sampler/engine_test.py::test_logprobs_are_those_of_a_full_forward_pass",
  ),
  "version_of_a_token": Fault(
    "sampler/engine.py",
    "completion.versions += [version] *",
    "completion.versions += [version - 1] *",
    "sampler/engine_test.py::test_completions_go_on_with_other_parameters",
  ),
  "second_end_token": Fault(
    "sampler/generation.py",
    "jnp.isin(token, jnp.array(ends))",
    "jnp.isin(token, jnp.array(ends[:1]))",
    "sampler/engine_test.py::test_several_tokens_can_end_a_completion",
  ),
  # The wire.
  "checksum": Fault(
    "transport/checksum.py",
    "if data[-5:-4] != _TAG or data[-4:] != expected:",
    "if data[-5:-4] != _TAG:",
    "transport/checksum_test.py::test_any_changed_lost_or_added_byte_is_noticed",
  ),
  "delta_of_many_blocks": Fault(
    "transport/delta.py",
    "previous = changed[-1]",
    "previous = -1",
    "transport/delta_test.py::test_every_bit_comes_back",
  ),
  "delta_to_other_bits": Fault(
    "transport/weights.py",
    "if held is not None and held.sha256() != request.held_sha256:",
    "if False:",
    "transport/weights_test.py::test_an_unknown_base_or_one_with_other_bits_gets_everything",
  ),
  "token": Fault(
    "transport/interceptors.py",
    "not hmac.compare_digest(given, self._expected)",
    "False",
    "transport/security_test.py::test_a_sampler_with_wrong_credentials_is_refused_and_disturbs_nobody",
  ),
  "message_size": Fault(
    "transport/server.py",
    '("grpc.max_receive_message_length", max_message_mb << 20)',
    '("grpc.max_receive_message_length", -1)',
    "transport/wire_test.py::test_the_server_takes_no_message_beyond_the_limit",
  ),
  # Tasks and evaluation.
  "order_of_prompts": Fault(
    "tasks/stream.py",
    "default_rng([seed, epoch])",
    "default_rng([epoch])",
    "tasks/stream_test.py::test_the_stream_is_a_function_of_seed_and_index",
  ),
  "stream_position": Fault(
    "tasks/stream.py",
    "place = start % self._length if self._length else start",
    "place = 0",
    "tasks/stream_test.py::test_a_resumed_stream_finds_every_prompt_again",
  ),
  "cut_completions": Fault(
    "tasks/thoughts.py",
    "completion if judge_unfinished or (finished and answered) else None",
    "completion if judge_unfinished or answered else None",
    "tasks/thoughts_test.py::test_what_was_cut_or_ends_in_a_thought_has_not_answered",
  ),
  "sign_of_a_number": Fault(
    "tasks/numerals.py",
    'value *= (-1) ** sign.count("-")',
    "value *= 1",
    "tasks/numerals_test.py::test_numbers_are_read_exactly",
  ),
  "length_reward": Fault(
    "tasks/shaping.py",
    "[0.5 - (length - low)",
    "[0.5 + (length - low)",
    "tasks/shaping_test.py::test_the_length_reward_is_kimis",
  ),
  "pass_at_k": Fault(
    "evaluation/estimates.py",
    "math.comb(num_samples - num_correct, k)",
    "math.comb(num_correct, k)",
    "evaluation/estimates_test.py::test_pass_at_k_is_the_share_of_all_k_subsets_with_a_success",
  ),
  "shaped_accuracy": Fault(
    "evaluation/estimates.py",
    "[t.verdict == 1.0 for t",
    "[t.reward == 1.0 for t",
    "evaluation/estimates_test.py::test_right_is_the_verdict_whatever_was_added_to_it",
  ),
  "majority": Fault(
    "evaluation/votes.py",
    "for b in ballots.values() if len(b) == most]",
    "for b in ballots.values()]",
    "evaluation/votes_test.py::test_a_vote",
  ),
  "processes_of_programs": Fault(
    "sandbox/seccomp.py",
    "_unless(_ANY_BIT, _CLONE_THREAD, denied)",
    "_unless(_ANY_BIT, _CLONE_THREAD, missing)",
    "sandbox/seccomp_test.py::test_clone_makes_threads_only",
  ),
  "names_of_programs": Fault(
    "sandbox/inside.py",
    "- known - namespace.keys() - set(dir(builtins))",
    "- known - namespace.keys()",
    "tasks/code_test.py::test_only_the_tests_say_which_functions_are_the_programs",
  ),
  "tracked_twice": Fault(
    "observe/tracking.py",
    "if self._file is None or _identity(line) in self._known:",
    "if self._file is None:",
    "observe/tracking_test.py::test_a_resume_goes_on_in_the_same_run_and_repeats_no_row",
  ),
  # Contexts that go back.
  "a_thought_without_its_beginning": Fault(
    "environments/context.py",
    '"content": self._history.opened + text})',
    '"content": text})',
    "tasks/turns_test.py::test_a_template_sees_the_whole_of_a_thought_that_the_prompt_began",
  ),
  "a_second_end_of_turn": Fault(
    "tasks/tokenizer.py",
    "written = ends[: ends.index(last) + 1] if last in ends else [last]",
    "written = [last]",
    "tasks/turns_test.py::test_all_marks_that_end_a_turn_are_written_once",
  ),
  "what_was_dropped_is_seen": Fault(
    "replay/packing.py",
    "ends[to:at] = np.minimum(ends[to:at], at)",
    "ends[to:at] = ends[to:at]",
    "replay/packing_test.py::test_what_a_context_has_dropped_is_not_read",
  ),
  "positions_of_what_was_dropped": Fault(
    "replay/packing.py",
    "positions[at:] -= positions[at] - positions[to]",
    "positions[at:] -= 0",
    "replay/packing_test.py::test_every_scored_token_sees_its_prompt_and_its_own_past",
  ),
  "the_cache_of_what_was_dropped": Fault(
    "sampler/in_progress.py",
    "self.cached = min(self.cached, self.size)",
    "self.cached = min(self.cached, self.size + 1)",
    "sampler/engine_rewinds_test.py::test_logprobs_are_those_of_what_a_turn_sees",
  ),
  "a_replay_does_not_go_back": Fault(
    "environments/episodes.py",
    "to = dict(recorded.rewinds).get(episode.tokens)",
    "to = None",
    "sampler/engine_rewinds_test.py::test_recorded_replies_go_back_where_they_did",
  ),
  # Chats.
  "an_agent_may_begin_otherwise": Fault(
    "environments/episodes.py",
    "if tokens == prompt:",
    "if tokens:",
    "agents_system_test.py::test_an_agent_that_begins_otherwise_has_failed",
  ),
  "a_stop_text_told_in_part": Fault(
    "sampler/chat.py",
    "return text[: len(text) - open_end]",
    "return text",
    "sampler/chat_test.py::test_a_stop_text_ends_an_answer_and_is_never_told_in_part",
  ),
}
