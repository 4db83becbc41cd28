"""The run-time checker of annotations in tests: like a static checker, it takes an int where a float is asked for."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
