"""Names and places the other tasks draw from."""

from __future__ import annotations

from .words import words

NAMES = words(
    "Anna Ben Clara David Emma Felix Grace Hugo Ida Jack Karen Leo Mia Noah Olivia Peter Quinn Rosa Sam "
    "Tina Umar Vera Walter Yara Zoe Alice Bob Carol Dan Eve Frank Maria John Paul Lucy Tom"
)
CITIES = words(
    "Paris London Berlin Madrid Rome Vienna Oslo Lisbon Prague Warsaw Athens Dublin Cairo Tokyo Delhi "
    "Boston Chicago Toronto Sydney Lima Zurich Munich Milan Geneva Hamburg Beijing Seoul"
)
COLOURS = words("red blue green yellow black white orange purple brown grey pink")
PETS = words("cat dog horse rabbit parrot hamster turtle fish")
JOBS = words("teacher doctor farmer singer pilot baker nurse painter lawyer cook driver writer")
