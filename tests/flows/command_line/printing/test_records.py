"""Records of iterations, as `spin show` prints them."""

from flows.command_line.printing.records import answer_rows, smaller_passes


def test_show_reports_that_memory_ran_out_during_generation(lineage):
    batch = lineage.records()[0].generations
    rows = dict(answer_rows(batch))
    assert "  memory" not in rows
    assert rows["answers"].startswith(f"{batch.statistics.generated.responses} answers, {batch.tokens} tokens")
    halved = dict(answer_rows(batch.model_copy(update={"smallest_batch": 8})))
    assert halved["  memory"] == "ran out; continued with 8 prompts at a time at the least"


def test_show_reports_that_memory_ran_out_during_training(lineage):
    train = lineage.records()[0].train
    assert smaller_passes(train) == []
    halved = train.model_copy(update={"micro_batch_tokens": ((2, 16384), (1, 8192), (5, 4096))})
    assert smaller_passes(halved) == [("  memory", "ran out; continued with 4,096 tokens in a pass after step 3")]
