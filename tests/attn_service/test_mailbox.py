from __future__ import annotations

import select
from contextlib import closing
from threading import Thread

from trimaran_attn.mailbox import Mailbox


def readable(mailbox: Mailbox[int], timeout_s: float = 0.0) -> bool:
    return bool(select.select([mailbox], [], [], timeout_s)[0])


def test_it_wakes_its_reader_and_keeps_the_order() -> None:
    with closing(Mailbox[int]()) as mailbox:
        assert not readable(mailbox)
        assert mailbox.take_all() == []
        thread = Thread(target=lambda: [mailbox.put(i) for i in range(100)])
        thread.start()
        assert readable(mailbox, 5.0)
        thread.join()
        taken = mailbox.take_all()
        taken += mailbox.take_all()
        assert taken == list(range(100))
        assert not readable(mailbox)
