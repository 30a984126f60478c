"""What is masked in chats, and what looks alike and is left."""

from __future__ import annotations

import pytest

from rlaif.chats.masks import KINDS, mask

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA0Z3VS5JJcds3\n-----END RSA PRIVATE KEY-----"
FOUND = [
    ("write to ada.love+x@mail.example.co.uk.", "write to [e-mail]."),
    ("我的邮箱是ada@example.com，谢谢", "我的邮箱是[e-mail]，谢谢"),
    ("<jörg@müller.de>", "<[e-mail]>"),
    ("mailto:ada@example.com?subject=x", "mailto:[e-mail]?subject=x"),
    ("call +49 30 901820", "call [phone]"),
    ("call +1 (415) 555-2671 today", "call [phone] today"),
    ("tel:+14155552671", "tel:[phone]"),
    ("(415) 555-2671 or 415.555.2671", "[phone] or [phone]"),
    ("1-800-555-0199", "[phone]"),
    ("030/901820 23", "[phone] 23"),
    ("ring 0301 234567 20 times", "ring [phone] 20 times"),
    ("0301 234567 0302 345678", "[phone] [phone]"),
    ("ruf 030 9018 2012 an", "ruf [phone] an"),
    ("0301 234567", "[phone]"),
    ("01 23 45 67 89", "[phone]"),
    ("0044 20 7946 0958", "[phone]"),
    ("07911123456", "[phone]"),
    ("电话13812345678。", "电话[phone]。"),
    ("138-1234-5678", "[phone]"),
    ("010-62781234", "[phone]"),
    ("card 4111 1111 1111 1111, please", "card [card], please"),
    ("5500005555555559 and 378282246310005", "[card] and [card]"),
    ("4111-1111-1111-1111", "[card]"),
    ("卡号6222021234567890128", "卡号[card]"),
    ("DE89 3704 0044 0532 0130 00 is mine", "[iban] is mine"),
    ("GB29NWBK60161331926819.", "[iban]."),
    ("to FR14 2004 1010 0505 0001 3M02 606 AND more", "to [iban] AND more"),
    ("from 203.0.113.7:8080", "from [ip-address]:8080"),
    ("http://198.51.100.23/path", "http://[ip-address]/path"),
    ("2001:db8:85a3::8a2e:370:7334 answers", "[ip-address] answers"),
    ("ping fe80::1ff:fe23:4567:890a", "ping [ip-address]"),
    ("key sk-proj-abcDEF1234567890abcDEF12", "key [secret]"),
    ("AKIAIOSFODNN7EXAMPLE", "[secret]"),
    ("token=ghp_" + "a1B2" * 9, "token=[secret]"),
    (f"Authorization: Bearer {JWT}", "Authorization: Bearer [secret]"),
    ("bearer abcdefghijklmnop0123456789", "bearer [secret]"),
    (f"here:\n{KEY}\nthanks", "here:\n[secret]\nthanks"),
    ("-----BEGIN PRIVATE KEY-----\nMIIEvQIBADAN", "[secret]"),
    ("hf_" + "aB3d" * 9 + " and xoxb-1234567890-abcdef", "[secret] and [secret]"),
]
LEFT = [
    "version 1.2.3.4 and v10.0.0.1 and 版本1.2.3.4",
    "Chrome 120.0.6099.109, kernel 5.15.0.91",
    "1.2.3.4.5 and 300.1.1.1 and 01.02.03.04",
    "127.0.0.1, 0.0.0.0, 255.255.255.0 and ::1",
    "on 2026-11-28, 28.11.2026, 11/28/2026 and 01.02.2026",
    "at 2026-11-28T01:40:00.123Z, at 12:34:56",
    "20261128014000 and 2026-11-28 01:40:00",
    "12345678901234567890 and 1234567890123456",
    "there are 15000000000 of them, 1732752000 seconds, 1732752000000 milliseconds",
    "4111 1111 1111 1112 has a wrong sum, 9111111111111111 no issuer",
    "DE89 3704 0044 0532 0130 01 has a wrong sum",
    "the digits 01 02 03 04 05 06 07 08",
    "3.14159265358979 and 1e-10 and 0.1234567890",
    "std::vector<a::b>, ab::cd, 10:20:30, 1:2:3",
    "git@github.com:org/repo.git, ssh root@server, @property, a@b",
    "sk-learn-is-a-library-for-python, sk-toggleable-content-arrow",
    "the hash d41d8cd98f00b204e9800998ecf8427e",
    "550e8400-e29b-41d4-a716-446655440000",
    "ISBN 978-3-16-148410-0, order 1000-2000, pages 100-200",
    "eyJ is how a token begins; AKIA too",
    "2 + 2 = 4; 10 000 000; 1,234,567,890",
    "-----BEGIN PUBLIC KEY-----",
]


@pytest.mark.parametrize(("text", "wanted"), FOUND)
def test_what_is_found(text: str, wanted: str) -> None:
    found = mask(text)
    assert found.text == wanted
    assert sum(found.counts.values()) == sum(wanted.count(f"[{kind}]") for kind in KINDS)


@pytest.mark.parametrize("text", LEFT)
def test_what_looks_alike_is_left(text: str) -> None:
    assert mask(text) == (text, {})


def test_kinds_are_counted() -> None:
    found = mask("a@b.org c@d.org 4111111111111111 +49 30 901820 203.0.113.7 AKIAIOSFODNN7EXAMPLE")
    assert found.counts == {"e-mail": 2, "card": 1, "phone": 1, "ip-address": 1, "secret": 1}
