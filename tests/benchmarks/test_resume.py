"""Bytes read after a resume, counted by the kernel."""

from benchmarks.corpus import Corpus
from benchmarks.resume import imagenet_extra_samples, resume_section


def test_lanes_read_the_rest_and_a_block_each_where_others_read_all_again(corpus: Corpus):
    section = resume_section(corpus)
    lanes, *others = ([float(cell.rstrip("%")) / 100 for cell in row[2:]] for row in section.rows)
    largest = (corpus.index.offsets[:, 1] - corpus.index.offsets[:, 0]).max()
    total = sum(shard.num_bytes for shard in corpus.index.shards)
    assert lanes[1] < 4 * 8 * largest / total
    for read, _ in others:
        assert 0.9 < read < 1.1  # the last incomplete batch is dropped


def test_an_imagenet_resume_reads_half_a_window_per_lane_again():
    assert 0.4 < imagenet_extra_samples() / (256 * 64) < 0.6
