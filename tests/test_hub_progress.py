"""How much of a download is there: counted from the bars of the Hub's client, from its threads, without drawing any."""

import threading

from sae_explore.files.hub import byte_counter


def test_bytes_are_counted_over_all_bars_and_files_are_not(capsys):
    told = []
    Counter = byte_counter(lambda done, total: told.append((done, total)))
    transfer = Counter(desc="Downloading bytes", total=0, initial=0, unit="B", unit_scale=True)
    written = Counter(desc="Reconstructing", total=0, initial=0, unit="B", unit_scale=True)
    files = Counter(range(2), desc="Fetching 2 files", total=2)
    written.update(5)  # before anything is known of the size
    assert told == []
    for size in (100, 50):  # a file's size becomes known when its turn comes
        written.total += size
        transfer.total += size
        written.refresh()
    threads = [threading.Thread(target=lambda: [written.update(1) for _ in range(60)]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    transfer.update(90)  # less than what has been written: nothing goes back
    files.update(1)
    written.update(40)  # a server may send more than it said
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert {total for _, total in told} == {150}
    assert told[-1] == (150, 150)
    for bar in (transfer, written, files):
        bar.close()
    assert capsys.readouterr() == ("", "")
