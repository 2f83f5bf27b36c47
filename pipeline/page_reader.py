"""Compiled loops that read a page in lexbor's normal form in one pass, for page_tree.py."""

from typing import Any

import numba
import numpy as np

from pipeline.page_tags import FNV_PRIME, FNV_START, LOW_56, NAME_BYTES, SCRIPT

_compiled: Any = numba.njit(cache=True, nogil=True, boundscheck=False)
_SPACE, _BANG, _QUOTE, _SLASH = 0x20, 0x21, 0x22, 0x2F
_LESS, _EQUAL, _MORE, _MINUS, _QUESTION = 0x3C, 0x3D, 0x3E, 0x2D, 0x3F


@_compiled
def _name(source: Any, at: Any, stop: Any) -> Any:
    """(packed name, position behind it) of the tag's or attribute's name at `at`."""
    value, whole = np.uint64(0), np.uint64(FNV_START)
    length = 0
    while at < stop:
        byte = source[at]
        if byte in (_SPACE, _MORE, _SLASH) or (byte == _EQUAL and length > 0):
            break
        if length < NAME_BYTES:
            value |= np.uint64(byte) << np.uint64(8 * length)
        whole = (whole ^ np.uint64(byte)) * np.uint64(FNV_PRIME)
        length += 1
        at += 1
    if length > NAME_BYTES:
        value = whole & np.uint64(LOW_56)
    return value | (np.uint64(min(length, 255)) << np.uint64(56)), at


@_compiled
def _tag_id(packed: Any, names: Any, ids: Any) -> Any:
    low, high = 0, names.shape[0]
    while low < high:
        middle = (low + high) // 2
        if names[middle] < packed:
            low = middle + 1
        else:
            high = middle
    if low < names.shape[0] and names[low] == packed:
        return ids[low]
    return np.int16(0)


@_compiled
def _attributes(source: Any, at: Any, wanted: Any, into: Any) -> Any:
    """Read ` name="value"` until the tag's end; the position behind its `>`."""
    stop = source.shape[0]
    while at < stop and source[at] != _MORE:
        if source[at] != _SPACE:
            at += 1
            continue
        packed, at = _name(source, at + 1, stop)
        if at + 1 >= stop or source[at] != _EQUAL or source[at + 1] != _QUOTE:
            continue
        start = at + 2
        at = start
        while at < stop and source[at] != _QUOTE:
            at += 1
        for column in range(wanted.shape[0]):
            if wanted[column] == packed and into[column, 1] == 0:
                into[column, 0] = start
                into[column, 1] = at
                break
        at += 1
    return min(at + 1, stop)


@_compiled
def _has_name(source: Any, at: Any, name: Any, length: Any) -> Any:
    """Whether the name source[name:name + length], in small letters, stands whole at `at`."""
    if at + length >= source.shape[0]:
        return False
    for offset in range(length):
        if source[at + offset] | 0x20 != source[name + offset] | 0x20:
            return False
    behind = source[at + length]
    return behind <= _SPACE or behind in (_SLASH, _MORE)


@_compiled
def _raw_end(source: Any, at: Any, name: Any, length: Any, is_script: Any) -> Any:
    """Where the end tag of a raw text element stands, or the page's end. In a script, a comment in
    which a script begins hides one end tag (the double escaped state of the HTML standard); of one
    that goes on to the page's end, the last is its own."""
    stop = source.shape[0]
    last = stop
    escaped = double = False
    while at < stop:
        byte = source[at]
        if byte == _LESS and at + 1 < stop:
            if source[at + 1] == _SLASH and _has_name(source, at + 2, name, length):
                if not double:
                    return at
                double, last = False, at
            elif is_script and escaped and _has_name(source, at + 1, name, length):
                double = True
            elif (
                is_script
                and at + 3 < stop
                and source[at + 1] == _BANG
                and source[at + 2] == _MINUS
                and source[at + 3] == _MINUS
            ):
                escaped = True
                at += 3
        elif byte == _MORE and escaped and source[at - 1] == _MINUS and source[at - 2] == _MINUS:
            escaped = double = False
        at += 1
    return last


@_compiled
def _comment_end(source: Any, at: Any) -> Any:
    stop = source.shape[0]
    while at + 2 < stop:
        if source[at] == _MINUS and source[at + 1] == _MINUS and source[at + 2] == _MORE:
            return at
        at += 1
    return stop


@_compiled
def read_elements(source: Any, most: Any, tables: Any) -> Any:  # noqa: C901 - one loop, one state machine
    names, ids, is_void, is_raw, wanted = tables
    upper, upper_texts, upper_comments = most
    tag = np.zeros(upper, np.int16)
    parent = np.zeros(upper, np.int32)
    end = np.zeros(upper, np.int32)
    opens = np.zeros(upper, np.int32)
    closes = np.full(upper, source.shape[0], np.int32)
    attributes = np.zeros((upper, wanted.shape[0], 2), np.int32)
    text_start = np.zeros(upper_texts, np.int32)
    text_end = np.zeros(upper_texts, np.int32)
    text_parent = np.zeros(upper_texts, np.int32)
    text_before = np.zeros(upper_texts, np.int32)
    comment_start = np.zeros(upper_comments, np.int32)
    comment_end = np.zeros(upper_comments, np.int32)
    num, texts, comments = 0, 0, 0
    current = -1
    stop = source.shape[0]
    at = 0
    while at < stop:
        if source[at] != _LESS:
            start = at
            while at < stop and source[at] != _LESS:
                at += 1
            text_start[texts], text_end[texts], text_parent[texts] = start, at, current
            text_before[texts] = num
            texts += 1
            continue
        following = source[at + 1] if at + 1 < stop else _MORE
        if following in (_BANG, _QUESTION):
            if at + 3 < stop and source[at + 2] == _MINUS and source[at + 3] == _MINUS:
                inside = at + 4
                at = _comment_end(source, inside)
                comment_start[comments], comment_end[comments] = inside, at
                comments += 1
                at = min(at + 3, stop)
            else:
                while at < stop and source[at] != _MORE:
                    at += 1
                at += 1
            continue
        if following == _SLASH:
            packed, _ = _name(source, at + 2, stop)
            is_alone = is_void[_tag_id(packed, names, ids)]  # pictures have some with an end tag
            while at < stop and source[at] != _MORE:
                at += 1
            at += 1
            if current >= 0 and not is_alone:
                end[current], closes[current] = num, at
                current = parent[current]
            continue
        packed, behind = _name(source, at + 1, stop)
        kind = _tag_id(packed, names, ids)
        name_start = at + 1
        tag[num], parent[num], opens[num] = kind, current, at
        at = _attributes(source, behind, wanted, attributes[num])
        num += 1
        if is_void[kind]:
            end[num - 1], closes[num - 1] = num, at
            continue
        current = num - 1
        if is_raw[kind]:
            start = at
            at = _raw_end(source, at, name_start, behind - name_start, kind == SCRIPT)
            if at > start:
                text_start[texts], text_end[texts], text_parent[texts] = start, at, current
                text_before[texts] = num
                texts += 1
    while current >= 0:
        end[current] = num
        current = parent[current]
    return (
        tag[:num], parent[:num], end[:num], opens[:num], closes[:num], attributes[:num],
        text_start[:texts], text_end[:texts], text_parent[:texts], text_before[:texts],
        comment_start[:comments], comment_end[:comments],
    )  # fmt: skip
