"""Identity: births, losses, returns, crossings and cuts, on faces that are only boxes and appearances."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import hidden, placed

from facetrack.tracker import tracks
from facetrack.tracker.appearance import blended, similarity
from facetrack.tracker.track import DEAD_BAND, FORESIGHT_S, SEEK_S, Track, TrackSettings
from facetrack.tracker.tracks import (
    CONFIDENT,
    COVERED_IOU,
    DRIFT_S,
    EXPECTED,
    LEARN_S,
    MIN_MARGIN,
    SEEK_EVERY,
    STEADY,
    WAIT_S,
    TrackBook,
)
from facetrack.tracker.types import Float32, Landmarks, State

RATE = 30.0
SIZE = 100.0
SETTINGS = TrackSettings()
PEOPLE = np.linalg.qr(np.random.default_rng(0).normal(size=(192, 12)))[0].T.astype(np.float32)


def appearance(person: int) -> Float32:
    """A unit vector of its own for each person, at right angles to everybody else's."""
    return PEOPLE[person]


def between(a: Float32, b: Float32, similarity: float) -> Float32:
    """An appearance of this similarity to `a`, turned towards `b`."""
    return (similarity * a + np.sqrt(1 - similarity**2) * b).astype(np.float32)


def face(x: float, y: float = 200.0, presence: float = 1.0, size: float = SIZE, confidence: float = 0.9) -> Landmarks:
    """Landmarks whose box is a square of this size round (x, y)."""
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [0, 0], [0, 0]]) * size / 2
    return Landmarks(square + np.array([x, y]), np.ones(6), confidence, presence, "square")


def book_of(*people: int, settings: TrackSettings = SETTINGS, spacing: float = 200.0) -> TrackBook:
    """A book at time 0 with one track per person, 200 pixels apart."""
    book = TrackBook(settings)
    for number, person in enumerate(people):
        assert book.admit(0.0, face(100 + spacing * number), appearance(person)) is not None
    return book


def states(book: TrackBook) -> dict[int, str]:
    return {track.number: track.state.value for track in book.live}


def lost(track: Track) -> Landmarks:
    """What the network says about the crop of a face that is not there."""
    x, y = (track.box[:2] + track.box[2:]) / 2
    return face(float(x), float(y), presence=0.02, confidence=0.02)


def test_confident_face_starts_as_new_and_is_then_tracked() -> None:
    book = book_of(1)
    assert states(book) == {0: "new"}
    book.observe(1 / RATE, [face(103)], [appearance(1)])
    assert states(book) == {0: "tracked"}
    assert book.live[0].box.tolist() == [53, 150, 153, 250]


def test_lost_face_is_searched_for_periodically_for_a_while_beside_others() -> None:
    book = book_of(1, 2)
    wanted = []
    for frame in range(1, 121):
        away = [lost(book.live[1])] if len(book.live) > 1 else []
        book.observe(frame / RATE, [face(100), *away], [appearance(1), appearance(2)][: 1 + len(away)])
        wanted.append(book.needs_detection)
    assert wanted[0]
    later = [i + 1 for i, want in enumerate(wanted) if want and i > 10]  # it has left the picture
    assert set(np.diff(later)) == {SEEK_EVERY}
    assert later[-1] / RATE == pytest.approx(SEEK_S, abs=SEEK_EVERY / RATE)


def test_partly_hidden_face_beside_another_gets_no_new_track_id_yet() -> None:
    book = book_of(1, 2)
    book.observe(1 / RATE, [face(100), lost(book.live[1])], [appearance(1), appearance(3)])  # the second is covered
    half_hidden = between(appearance(2), appearance(1), 0.3)
    assert book.admit(2 / RATE, face(160), half_hidden) is None
    returned = book.admit(3 / RATE, face(230), appearance(2))
    assert returned is not None
    assert returned.number == 1
    stranger = book.admit(4 / RATE, face(500), appearance(4))  # nobody is in front of this one
    assert stranger is not None
    assert stranger.number == 2


def test_crop_is_predicted_from_the_motion() -> None:
    book = book_of(1)
    np.testing.assert_array_equal(book.live[0].aim(1 / RATE), face(100).xy)  # one measurement is no motion
    book.observe(1 / RATE, [face(110)], [appearance(1)])
    slack = DEAD_BAND * SIZE
    np.testing.assert_allclose(book.live[0].aim(2 / RATE), face(120 - slack).xy, atol=1e-3)
    for time_s in (1 / RATE, 0.0, 1 / RATE + 0.3):  # now, a clock that starts again, too long ago
        np.testing.assert_array_equal(book.live[0].aim(time_s), face(110).xy)


def test_crop_is_predicted_at_most_a_quarter_of_the_face_ahead() -> None:
    book = book_of(1)
    book.observe(1 / RATE, [face(160)], [appearance(1)])
    np.testing.assert_allclose(book.live[0].aim(2 / RATE), face(160 + 0.25 * SIZE).xy, atol=1e-2)


def test_crop_ignores_noise_but_follows_a_drift() -> None:
    book = book_of(1)
    first = book.live[0].aim(1 / RATE)
    rng = np.random.default_rng(0)
    for frame in range(1, 20):
        book.observe(frame / RATE, [face(100 + rng.normal(0, 0.2))], [appearance(1)])
        np.testing.assert_array_equal(book.live[0].aim((frame + 1) / RATE), first)
    for frame in range(20, 60):
        x = 100 + 0.1 * (frame - 19)
        book.observe(frame / RATE, [face(x)], [appearance(1)])
        assert np.abs(book.live[0].aim((frame + 1) / RATE) - face(x).xy).max() <= DEAD_BAND * SIZE + 0.1


def test_face_below_the_birth_threshold_starts_no_track() -> None:
    book = TrackBook()
    assert book.admit(0.0, face(100, presence=SETTINGS.birth - 0.01), appearance(1)) is None
    assert book.admit(0.0, face(100, presence=float("nan")), appearance(1)) is None
    assert book.live == []
    assert book.admit(0.0, face(100, presence=SETTINGS.birth), appearance(1)) is not None


def test_known_face_between_the_keep_and_birth_thresholds_stays_tracked() -> None:
    book = book_of(1)
    unsure = (SETTINGS.keep + SETTINGS.birth) / 2
    for frame in range(1, 20):
        book.observe(frame / RATE, [face(100, presence=unsure)], [appearance(1)])
        assert states(book) == {0: "tracked"}


def test_lost_face_coasts_in_the_same_frame_and_requests_a_search() -> None:
    book = book_of(1)
    assert not book.needs_detection
    book.observe(1 / RATE, [lost(book.live[0])], [appearance(1)])
    assert states(book) == {0: "coasting"}
    assert not book.live[0].measured
    assert book.needs_detection
    assert book.needs_full_search  # it was the only one: faces are looked for everywhere


def test_an_empty_book_asks_for_a_search() -> None:
    assert TrackBook().needs_detection
    assert TrackBook().needs_full_search


def test_while_coasting_the_last_measured_landmarks_stay() -> None:
    book = book_of(1)
    book.observe(1 / RATE, [face(104)], [appearance(1)])
    book.observe(2 / RATE, [face(300, presence=0.01)], [between(appearance(1), appearance(5), 0.6)])
    assert book.live[0].landmarks.xy[4].tolist() == [104, 200]
    assert book.live[0].seen_s == pytest.approx(1 / RATE)


@pytest.mark.parametrize("rate", [10.0, 30.0, 120.0])
def test_coasting_lasts_coast_s_whatever_the_frame_rate(rate: float) -> None:
    book = book_of(1)
    coasted = 0
    for frame in range(1, int(rate)):
        book.observe(frame / rate, [lost(t) for t in book.live], [appearance(1) for _ in book.live])
        coasted += len(book.live)
    assert coasted == int(SETTINGS.coast_s * rate + 1e-9)


def test_a_coasting_face_that_is_measured_again_goes_on() -> None:
    book = book_of(1)
    book.observe(1 / RATE, [lost(book.live[0])], [appearance(1)])
    book.observe(2 / RATE, [face(110)], [appearance(1)])
    assert states(book) == {0: "tracked"}
    assert not book.needs_detection


def test_person_after_a_dissolve_does_not_continue_the_track() -> None:
    book = book_of(1)
    between_both = between(appearance(1), appearance(2), 0.6)
    book.observe(1 / RATE, [lost(book.live[0])], [between_both])
    book.observe(2 / RATE, [face(104)], [between(appearance(2), appearance(1), 0.9)])  # 0.44 like the first one
    assert states(book) == {}


def leave(book: TrackBook, time_s: float) -> None:
    """Everybody is out of sight until `time_s`, when nobody is on the picture any more."""
    for moment in (time_s - 0.4, time_s):
        book.observe(moment, [lost(t) for t in book.live], [appearance(11) for _ in book.live])
    assert book.live == []


def test_returning_face_gets_its_old_track_id_even_elsewhere() -> None:
    book = book_of(1, 2)
    leave(book, 3.0)
    back = book.admit(3.0, face(500), appearance(2))
    assert back is not None
    assert (back.number, back.state) == (1, State.TRACKED)
    other = book.admit(3.0, face(100), appearance(1))
    assert other is not None
    assert other.number == 0
    assert states(book) == {0: "tracked", 1: "tracked"}


@pytest.mark.parametrize(("size", "number"), [(0.45, 1), (0.55, 0), (1.9, 0), (2.1, 1)])
def test_re_identification_elsewhere_requires_a_similar_size(size: float, number: int) -> None:
    book = book_of(1)
    leave(book, 3.0)
    back = book.admit(3.0, face(500, size=size * SIZE), appearance(1))
    assert back is not None
    assert back.number == number


@pytest.mark.parametrize(("away_s", "number"), [(1.0, 1), (1.5, 0)])
def test_re_identification_is_limited_to_the_reachable_distance(away_s: float, number: int) -> None:
    """Eight of its sides away."""
    book = book_of(1)
    leave(book, away_s)
    back = book.admit(away_s, face(100 + 8 * SIZE), appearance(1))
    assert back is not None
    assert back.number == number


@pytest.mark.parametrize(("confidence", "number"), [(CONFIDENT, 0), (CONFIDENT - 0.01, 1)])
def test_only_a_clearly_seen_face_is_re_identified_elsewhere(confidence: float, number: int) -> None:
    book = TrackBook()
    book.admit(0.0, face(100, confidence=confidence), appearance(1))
    leave(book, 1.0)
    back = book.admit(1.0, face(400), appearance(1))
    assert back is not None
    assert back.number == number


def test_poor_first_appearance_is_replaced_by_the_first_clear_one() -> None:
    book = TrackBook()
    book.admit(0.0, face(100, confidence=0.3), appearance(1))
    plain = between(appearance(1), appearance(2), 0.8)
    book.observe(1 / RATE, [face(100)], [plain])
    assert similarity(book.live[0].appearance, plain) == pytest.approx(1, abs=1e-5)


def test_new_face_is_compared_only_once_with_each_known_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a cut in a crowd many are new and many remembered."""
    book = book_of(*range(10))
    leave(book, 1.0)
    compared = []
    monkeypatch.setattr(tracks, "similarity", lambda one, other: compared.append(1) or similarity(one, other))
    assert book.admit(1.1, face(5000.0), appearance(11)) is not None
    assert len(compared) == 10


def test_face_similar_to_two_people_is_re_identified_as_neither() -> None:
    alike = (appearance(1) + appearance(2)) / np.float32(np.sqrt(2))
    for others, number in (((1, 2), 2), ((1, 3), 0)):  # 0.71 like each of the first two
        book = book_of(*others)
        leave(book, 1.0)
        back = book.admit(1.0, face(500), alike)
        assert back is not None
        assert back.number == number


def test_stranger_at_the_old_place_gets_a_new_track_id() -> None:
    book = book_of(1)
    leave(book, 1.0)
    stranger = book.admit(1.0, face(100), appearance(2))
    assert stranger is not None
    assert (stranger.number, stranger.state) == (1, State.NEW)


def test_a_face_that_is_away_too_long_is_forgotten() -> None:
    book = book_of(1)
    leave(book, SETTINGS.memory_s)
    book.observe(SETTINGS.memory_s + 0.1, [], [])
    again = book.admit(SETTINGS.memory_s + 0.1, face(100), appearance(1))
    assert again is not None
    assert again.number == 1


def test_more_similar_of_two_remembered_faces_is_re_identified() -> None:
    book = book_of(1, 2)
    leave(book, 1.0)
    back = book.admit(1.0, face(300), between(appearance(2), appearance(1), 0.8))
    assert back is not None
    assert back.number == 1


def test_coasting_face_needs_less_similarity_at_its_own_place() -> None:
    similarity = (SETTINGS.other_appearance + SETTINGS.same_appearance) / 2
    for x, number in ((115.0, 0), (300.0, 1)):
        book = book_of(1)
        book.observe(1 / RATE, [lost(book.live[0])], [appearance(1)])
        back = book.admit(1 / RATE, face(x), between(appearance(1), appearance(2), similarity))
        assert back is not None
        assert back.number == number


def test_track_ids_are_never_reused() -> None:
    book, seen = TrackBook(TrackSettings(memory_s=0.5)), []
    for visit in range(10):
        track = book.admit(visit * 2.0, face(100), appearance(visit % 3))
        assert track is not None
        seen.append(track.number)
        leave(book, visit * 2.0 + 1.5)
    assert seen == list(range(10))


def test_a_face_already_followed_is_not_admitted_again() -> None:
    book = book_of(1)
    assert book.admit(0.0, face(110), appearance(1)) is None
    assert states(book) == {0: "new"}


def test_two_tracks_on_one_face_merge_into_the_older() -> None:
    book = book_of(1, 1, spacing=60.0)
    book.observe(1 / RATE, [face(110), face(130)], [appearance(1), appearance(1)])
    assert states(book) == {0: "tracked", 1: "coasting"}  # the face is 0's; 1 was seen beside it a frame ago
    book.observe(2 / RATE, [face(120), face(120)], [appearance(1), appearance(1)])
    assert states(book) == {0: "tracked", 1: "coasting"}
    book.observe(3 / RATE, [face(150), face(150)], [appearance(1), appearance(1)])
    assert states(book) == {0: "tracked"}  # now 0 stands where 1 was seen: no ghost over the face
    leave(book, 1.0)
    back = book.admit(1.0, face(165), appearance(1))
    assert back is not None
    assert back.number == 0  # and not the duplicate, which looked the same


def test_coasting_track_under_a_measured_one_is_removed() -> None:
    book = book_of(1, 2)
    for frame, x in enumerate((250, 210, 170, 150, 130), start=1):
        found = [lost(t) if t.number == 0 else face(x) for t in book.live]
        book.observe(frame / 300, found, [appearance(t.number + 1) for t in book.live])
    assert states(book) == {1: "tracked"}


def test_crossing_faces_keep_their_track_ids() -> None:
    """Person 2 walks in front of person 1; while hidden, 1's crop shows 2 and the network is sure of a face."""
    book = book_of(1, 2)
    for frame in range(1, 60):
        time_s, front = frame / RATE, 300.0 - 8 * frame
        hidden = abs(front - 100) < 60
        found, appearances = [], []
        for track in book.live:
            shown = 2 if hidden or track.number == 1 else 1
            found.append(face(front if shown == 2 else 100.0))
            appearances.append(appearance(shown))
        book.observe(time_s, found, appearances)
        if not hidden:
            book.admit(time_s, face(100.0), appearance(1))
        by_number = {t.number: t for t in book.live if t.measured}
        assert by_number[1].landmarks.xy[4, 0] == front
        assert (0 in by_number) == (not hidden)
        assert set(by_number) <= {0, 1}


def test_more_similar_track_keeps_the_face_though_it_is_younger() -> None:
    book = book_of(1, 2)
    similarity = (
        SETTINGS.other_appearance + SETTINGS.same_appearance
    ) / 2  # not clearly somebody else, but not the same either
    alike = between(appearance(1), appearance(2), similarity)
    book.live[1].appearance = alike
    book.live[0].box = book.live[0].box + np.float32([140, 0, 140, 0])
    book.observe(1 / RATE, [face(300), face(300)], [alike, alike])
    assert states(book) == {0: "coasting", 1: "tracked"}


@pytest.mark.parametrize(
    ("more", "numbers"), [(0.5 * MIN_MARGIN, {0: "tracked"}), (1.5 * MIN_MARGIN, {0: "coasting", 1: "tracked"})]
)
def test_older_of_two_tracks_keeps_the_face_unless_the_other_is_clearly_more_similar(
    more: float, numbers: dict[int, str]
) -> None:
    """A little more likeness is noise, and would let the numbers of look-alikes flicker."""
    book, likeness = book_of(1, 2), 0.75
    book.live[0].box = book.live[0].box + np.float32([140, 0, 140, 0])
    for track, other, alike in zip(book.live, (5, 6), (likeness, likeness + more), strict=True):
        track.appearance = between(appearance(1), appearance(other), alike)
    book.observe(1 / RATE, [face(300), face(300)], [appearance(1), appearance(1)])
    assert states(book) == numbers


def test_cut_to_another_person_ends_the_track_at_once_and_requests_a_search() -> None:
    book = book_of(1, 3)
    book.observe(1 / RATE, [face(102), face(300)], [appearance(2), appearance(3)])
    assert states(book) == {1: "tracked"}  # no ghost of a person who is not in this shot
    assert book.needs_detection
    stranger = book.admit(1 / RATE, face(102), appearance(2))
    assert stranger is not None
    assert (stranger.number, stranger.state) == (2, State.NEW)
    book.observe(2 / RATE, [face(300), face(102)], [appearance(3), appearance(2)])
    assert not book.needs_detection


@pytest.mark.parametrize(("confidence", "goes_on"), [(CONFIDENT - 0.01, True), (CONFIDENT, False)])
def test_partly_visible_face_stays_tracked_if_it_was_not_clearly_seen_just_before(
    confidence: float, *, goes_on: bool
) -> None:
    """A third of it shows itself; a moment ago, when it was not plain to see, what the crop showed was like neither."""
    book = book_of(1)
    book.live[0].last_appearance = appearance(5)
    book.live[0].landmarks = face(100, confidence=confidence)
    shown = appearance(1).reshape(8, 8, 3).copy()
    shown[:, 3:] = appearance(7).reshape(8, 8, 3)[:, 3:]
    book.observe(1 / RATE, [face(102)], [shown.ravel() / np.float32(np.linalg.norm(shown))])
    assert states(book) == ({0: "tracked"} if goes_on else {})


def test_cut_to_no_face_leaves_no_coasting_track() -> None:
    book = book_of(1)
    book.observe(1 / RATE, [lost(book.live[0])], [appearance(7)])
    assert states(book) == {}
    assert book.needs_detection


@pytest.mark.parametrize(("similarity", "goes_on"), [(STEADY - 0.05, False), (STEADY + 0.05, True)])
def test_face_unlike_its_learnt_appearance_ends_the_track_only_after_an_abrupt_change(
    similarity: float, *, goes_on: bool
) -> None:
    """Looks change little from one frame to the next."""
    book = book_of(1)
    book.live[0].appearance = between(appearance(1), appearance(5), SETTINGS.other_appearance)
    book.observe(1 / RATE, [face(102)], [between(appearance(1), appearance(2), similarity)])
    assert states(book) == ({0: "tracked"} if goes_on else {})


def new_shot() -> bool:
    return True


@pytest.mark.parametrize(("likeness", "goes_on"), [(-0.01, False), (0.01, True)])
@pytest.mark.parametrize("steady", [False, True])
def test_face_in_place_at_a_shot_start_needs_the_similarity_required_elsewhere(
    likeness: float, *, goes_on: bool, steady: bool
) -> None:
    """Two who talk with each other are shown in turn, each in the middle of the picture."""
    book = book_of(1)
    seen = between(appearance(1), appearance(2), SETTINGS.same_appearance + likeness)
    if steady:
        book.live[0].last_appearance = seen
    book.observe(1 / RATE, [face(102)], [seen], new_shot)
    assert states(book) == ({0: "tracked"} if goes_on else {})
    assert book.needs_full_search is not goes_on


def test_face_in_place_needs_less_similarity_within_a_shot() -> None:
    book = book_of(1)
    seen = between(appearance(1), appearance(2), SETTINGS.other_appearance + 0.01)
    book.observe(1 / RATE, [face(102)], [seen], lambda: False)
    assert states(book) == {0: "tracked"}


@pytest.mark.parametrize(("own", "number"), [(0.72, 0), (0.9, 1)])
def test_face_clearly_of_a_lost_track_gets_its_track_id_at_a_shot_start(own: float, number: int) -> None:
    book = book_of(1)
    book.observe(1.0, [face(100)], [appearance(2)], new_shot)
    assert book.admit(1.0, face(100), appearance(2)) is not None
    book.live[0].appearance = between(appearance(1), appearance(3), own)
    back = between(appearance(1), appearance(2), 0.95)
    assert similarity(book.live[0].appearance, back) > SETTINGS.same_appearance
    book.observe(2.0, [face(100)], [back], new_shot)
    book.admit(2.0, face(100), back)
    assert list(states(book)) == [number]


def test_partial_similarity_is_no_proof_after_a_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing covers the rest: half of two people's faces is often alike."""
    monkeypatch.setattr(tracks, "similarity_in_part", lambda *_: 0.9)
    book = book_of(1)
    other = between(appearance(1), appearance(2), SETTINGS.same_appearance - 0.01)
    book.observe(1 / RATE, [face(102)], [other], new_shot)
    born = book.admit(1 / RATE, face(102), other)
    assert born is not None
    assert born.number == 1


def test_first_person_gets_the_old_track_id_after_a_cut_back() -> None:
    book = book_of(1)
    book.observe(1.0, [face(100)], [appearance(2)])
    book.admit(1.0, face(100), appearance(2))
    book.observe(2.0, [face(100)], [appearance(1)])
    back = book.admit(2.0, face(100), appearance(1))
    assert back is not None
    assert back.number == 0


def test_an_appearance_that_changes_slowly_does_not_break_a_track() -> None:
    book = book_of(1)
    for step in range(90):
        angle = np.pi / 2 * step / 90
        now = (np.cos(angle) * appearance(1) + np.sin(angle) * appearance(2)).astype(np.float32)
        book.observe((step + 1) / RATE, [face(100)], [now])
        assert states(book) == {0: "tracked"}


@pytest.mark.parametrize(
    "found",
    [
        face(100 + 0.8 * SIZE),
        face(100, 200 - 0.8 * SIZE),
        face(100, size=0.45 * SIZE),
        face(100, size=2.1 * SIZE),
        face(float("nan")),
    ],
    ids=["jumped aside", "jumped up", "shrank", "grew", "no numbers"],
)
def test_implausible_change_within_a_frame_counts_as_a_loss(found: Landmarks) -> None:
    book = book_of(1)
    book.observe(1 / RATE, [found], [appearance(1)])
    assert states(book) == {0: "coasting"}


def test_fast_steady_motion_is_not_a_loss() -> None:
    book = book_of(1)
    for frame in range(1, 20):
        book.observe(frame / RATE, [face(100 + 0.7 * SIZE * frame)], [appearance(1)])
    assert states(book) == {0: "tracked"}


def boxes_at(*places: float) -> Float32:
    return np.array([[x - 50, 150, x + 50, 250] for x in places], np.float32).reshape(-1, 4)


def test_detections_on_measured_faces_are_claimed_and_those_on_lost_ones_are_not() -> None:
    book = book_of(1, 2)
    detected = boxes_at(700, 105, 295)
    assert book.unclaimed(detected) == [0]
    book.observe(1 / RATE, [lost(book.live[0]), face(300)], [appearance(1), appearance(2)])
    assert book.unclaimed(detected) == [0, 1]
    assert TrackBook().unclaimed(detected) == [0, 1, 2]
    assert book.unclaimed(boxes_at()) == []


def test_five_points_of_a_measured_face_cover_the_detection_of_the_whole_face() -> None:
    five = placed(0, (100.0, 200.0), SIZE, 0.0).astype(np.float32)
    book = TrackBook(SETTINGS)
    assert book.admit(0.0, Landmarks(five, np.ones(5), 0.9, 1.0, "five5"), appearance(1)) is not None
    whole = np.array([[100 - SIZE / 2, 200 - SIZE / 2, 100 + SIZE / 2, 200 + SIZE / 2]], np.float32)
    assert book.unclaimed(whole) == []


def test_detection_that_a_measured_face_only_touches_is_unclaimed() -> None:
    """Two heads close together."""
    book, detected = book_of(1), boxes_at(160, 145)
    shared = [(SIZE - apart) / (SIZE + apart) for apart in (60, 45)]
    assert 0 < shared[0] < COVERED_IOU < shared[1]
    assert book.unclaimed(detected) == [0]


def test_number_of_measured_faces_is_limited_and_a_lost_one_makes_room() -> None:
    book = book_of(1, 2, settings=TrackSettings(most_faces=2))
    detected = boxes_at(700, 900)
    assert book.unclaimed(detected) == []
    book.observe(1 / RATE, [lost(book.live[0]), face(300)], [appearance(1), appearance(2)])
    assert book.unclaimed(detected) == [0]
    assert TrackBook(TrackSettings(most_faces=1)).unclaimed(detected) == [0]


def test_longest_known_faces_are_kept_if_there_are_too_many() -> None:
    book = book_of(1, settings=TrackSettings(most_faces=1))
    book.observe(1 / RATE, [lost(book.live[0])], [appearance(1)])
    newcomer = book.admit(1 / RATE, face(700), appearance(2))
    assert newcomer is not None
    book.observe(2 / RATE, [face(100), face(700)], [appearance(1), appearance(2)])
    assert states(book) == {0: "tracked"}
    assert book.unclaimed(boxes_at(300, 400, 500, 900)) == []
    np.testing.assert_array_equal(book.missing, boxes_at(700))  # the newcomer, who may come back


def test_close_timestamps_do_not_turn_noise_into_speed() -> None:
    book = book_of(1)
    book.observe(1e-5, [face(101)], [appearance(1)])
    assert np.abs(book.live[0].velocity).max() <= 250  # px/s: 1 px in 4 ms
    assert np.abs(book.live[0].place(0.5) - book.live[0].box).max() <= 125


def test_tracks_are_sorted_by_track_id() -> None:
    book = book_of(1, 2, 3)
    book.observe(0.1, [lost(t) if t.number != 2 else face(500) for t in book.live], [appearance(n) for n in (1, 2, 3)])
    book.admit(0.1, face(302), appearance(2))
    book.admit(0.1, face(900), appearance(4))
    book.admit(0.1, face(102), appearance(1))
    assert list(states(book)) == [0, 1, 2, 3]


def test_restarted_stream_ends_coasting_and_clears_the_memory() -> None:
    book = book_of(1, 2)
    for track in book.live:
        track.seen_s = 500.0
    book.observe(0.0, [lost(t) for t in book.live], [appearance(1), appearance(2)])
    assert book.live == []
    again = book.admit(0.0, face(100), appearance(1))
    assert again is not None
    assert again.number == 2


@pytest.mark.parametrize("coasting", [False, True])
@pytest.mark.parametrize(("likeness", "goes_on"), [(-0.01, False), (0.01, True)])
def test_face_in_place_after_a_gap_needs_the_similarity_required_elsewhere(
    likeness: float, *, goes_on: bool, coasting: bool
) -> None:
    """A camera was away, and somebody else sits in the chair."""
    book = book_of(1)
    if coasting:
        book.observe(0.1, [lost(book.live[0])], [appearance(1)])
        assert states(book) == {0: "coasting"}
    seen = between(appearance(1), appearance(2), SETTINGS.same_appearance + likeness)
    book.observe(0.1 + SEEK_S, [face(100)], [seen])
    assert states(book) == ({0: "tracked"} if goes_on else {})
    assert book.needs_full_search is not goes_on


def test_partial_similarity_is_no_proof_after_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracks, "similarity_in_part", lambda *_: 0.9)
    for elapsed_s, going_on in ((SEEK_S, {0: "tracked"}), (SEEK_S + 0.1, {})):
        book = TrackBook()
        book.admit(0.0, face(100, confidence=CONFIDENT - 0.1), appearance(1))
        book.observe(elapsed_s, [face(100)], [appearance(2)])
        assert states(book) == going_on


@pytest.mark.parametrize("rate", [0.5, 1, 2, 5])
def test_low_frame_rate_does_not_raise_the_required_similarity(rate: float) -> None:
    book = book_of(1)
    turned = between(appearance(1), appearance(2), SETTINGS.other_appearance + 0.01)
    for frame in range(1, 10):
        book.observe(frame / rate, [face(100)], [turned])
        assert states(book) == {0: "tracked"}
        book.live[0].appearance = appearance(1)


def test_gap_longer_than_the_memory_starts_all_tracks_anew() -> None:
    for away_s, number in ((SETTINGS.memory_s, 0), (SETTINGS.memory_s + 0.1, 1)):
        book = book_of(1)
        book.observe(away_s, [face(100)], [appearance(1)])
        book.admit(away_s, face(100), appearance(1))
        assert list(states(book)) == [number]


def test_restarted_stream_has_no_velocity_across_the_restart() -> None:
    book = TrackBook()
    book.admit(10.0, face(100), appearance(1))
    book.observe(10.0 + 1 / RATE, [face(104)], [appearance(1)])
    book.observe(0.0, [face(108)], [appearance(1)])
    assert states(book) == {0: "tracked"}
    assert book.live[0].velocity is None
    np.testing.assert_array_equal(book.live[0].aim(1 / RATE), face(108).xy)


def test_restarted_stream_learns_no_appearance_across_the_restart() -> None:
    """The time since the last sight is none by which to learn."""
    book = TrackBook()
    book.admit(10.0, face(100), appearance(1))
    book.observe(0.0, [face(100)], [between(appearance(1), appearance(5), 0.9)])
    assert states(book) == {0: "tracked"}
    np.testing.assert_array_equal(book.live[0].appearance, appearance(1))


def test_observe_needs_as_many_measurements_as_tracks() -> None:
    with pytest.raises(ValueError, match="argument"):
        book_of(1).observe(0.1, [], [])


# who a face is, when it was hidden


def test_appearance_is_learnt_only_from_a_clearly_seen_and_uncovered_face() -> None:
    other_day = between(appearance(1), appearance(5), 0.9)
    for x, confidence, learns in ((100, 0.95, True), (100, CONFIDENT - 0.01, False), (210, 0.95, False)):
        book = TrackBook()
        book.admit(0.0, face(x), appearance(1))
        book.admit(0.0, face(300), appearance(2))
        for frame in range(1, 20):
            book.observe(frame / RATE, [face(x, confidence=confidence), face(300)], [other_day, appearance(2)])
        assert (similarity(book.live[0].appearance, appearance(1)) < 0.999) == learns


def test_admit_refuses_faces_beyond_the_maximum() -> None:
    book = TrackBook(TrackSettings(most_faces=2))
    taken = [book.admit(0.0, face(100 + 200 * number), appearance(number)) is not None for number in range(3)]
    assert taken == [True, True, False]


def test_appearance_is_learnt_in_proportion_to_the_square_of_its_similarity() -> None:
    for likeness in (0.9, 0.6):
        book, seen = book_of(1), between(appearance(1), appearance(5), likeness)
        book.observe(0.3, [face(100)], [seen])
        learnt = blended(appearance(1), seen, 0.3 / LEARN_S * likeness**2)
        np.testing.assert_allclose(book.live[0].appearance, learnt, atol=1e-6)


@pytest.mark.parametrize("rate", [30, 5, 4, 2])
def test_appearance_is_learnt_equally_fast_at_any_frame_rate(rate: int) -> None:
    book, other_day = book_of(1), between(appearance(1), appearance(5), 0.9)
    for frame in range(1, 3 * rate + 1):
        book.observe(frame / rate, [face(100)], [other_day])
    assert similarity(book.live[0].appearance, other_day) > 0.985  # 0.9 at the start


@pytest.mark.parametrize(("rate", "followed"), [(30, True), (5, True), (4, False)])
def test_motion_is_predicted_only_at_5_frames_per_second_or_more(rate: int, *, followed: bool) -> None:
    book = book_of(1)
    for frame in range(1, 40):
        book.observe(frame / rate, [face(100 + frame)], [appearance(1)])
        assert (book.live[0].velocity is not None) == followed


def test_slowly_passing_occluder_ends_no_track_and_is_not_learnt() -> None:
    book = book_of(1)
    for frame in range(1, 16):
        seen = between(appearance(1), appearance(6), 1 - frame / 15)
        book.observe(frame / RATE, [face(100)], [seen])
        assert states(book) == {0: "tracked"}
    assert similarity(book.live[0].appearance, appearance(1)) > SETTINGS.same_appearance


def covered(book: TrackBook) -> None:
    """Something comes in front of everybody, slowly: first the network is at a loss, then nothing of them is seen."""
    found = [lost(track) for track in book.live]
    book.observe(0.1, found, [between(track.appearance, appearance(8), 0.6) for track in book.live])
    book.observe(0.5, found, [appearance(8) for _ in found])
    assert book.live == []


@pytest.mark.parametrize(("x", "time_s", "number"), [(110.0, 1.0, 0), (400.0, 1.0, 1), (110.0, SEEK_S + 0.5, 1)])
def test_re_identification_needs_less_similarity_soon_at_the_place_of_loss(
    x: float, time_s: float, number: int
) -> None:
    book = book_of(1)
    covered(book)
    book.observe(time_s, [], [])
    back = book.admit(time_s, face(x), between(appearance(1), appearance(3), 0.55))
    assert back is not None
    assert back.number == number


def test_place_of_loss_does_not_count_after_a_cut() -> None:
    book = book_of(1)
    book.observe(0.1, [face(100)], [appearance(2)])
    stranger = book.admit(0.1, face(100), between(appearance(1), appearance(3), 0.55))
    assert stranger is not None
    assert stranger.number == 1


def test_similarity_takes_precedence_over_the_place_of_loss() -> None:
    book = book_of(1, 2, spacing=400.0)
    covered(book)
    alike = between(appearance(2), appearance(1), 0.85)
    other = between(appearance(1), appearance(2), 0.6)
    assert similarity(appearance(1), alike) < similarity(other, appearance(1)) < SETTINGS.same_appearance
    back = book.admit(1.0, face(100), alike)  # the second, where the first was lost
    assert back is not None
    assert back.number == 1


def crossing(frames: int) -> TrackBook:
    """Person 1 walks to the right at 8 pixels a frame and from frame 15 on is behind person 2, who stands at 300."""
    book = TrackBook()
    book.admit(0.0, face(100), appearance(1))
    book.admit(0.0, face(300), appearance(2))
    for frame in range(1, frames + 1):
        shown = {0: face(100 + 8 * frame), 1: face(300)}
        found = [lost(t) if t.number == 0 and frame >= 15 else shown[t.number] for t in book.live]
        appearances = [appearance(2) if t.number == 0 and frame >= 15 else appearance(t.number + 1) for t in book.live]
        book.observe(frame / RATE, found, appearances)
    return book


def test_lost_face_is_searched_for_locally_and_periodically_in_the_whole_picture() -> None:
    book = book_of(1, 2)
    place = book.live[1].box.copy()
    whole = []
    for frame in range(1, 2 * SEEK_EVERY + 1):
        away = [lost(book.live[1])] if len(book.live) > 1 else []
        book.observe(frame / RATE, [face(100), *away], [appearance(1), appearance(2)][: 1 + len(away)])
        whole.append(book.needs_full_search)
        np.testing.assert_array_equal(book.missing, [place])
    assert whole == ([False] * (SEEK_EVERY - 1) + [True]) * 2
    book.observe(10.0, [face(100)], [appearance(1)])
    assert book.missing == []


def test_most_recently_lost_face_is_searched_for_first() -> None:
    """Only so many places are searched in a frame, and the last one is most likely to be back."""
    book = book_of(1, 2, 3)
    for frame, away in enumerate(({1}, {1, 2}), start=1):
        found = [lost(t) if t.number in away else face(100 + 200.0 * t.number) for t in book.live]
        book.observe(frame / RATE, found, [appearance(t.number + 1) for t in book.live])
    np.testing.assert_array_equal(book.missing, boxes_at(500, 300))


def test_whole_picture_is_searched_after_a_cut() -> None:
    book = book_of(1, 2)
    book.observe(1 / RATE, [face(100), face(300)], [appearance(1), appearance(7)])
    assert states(book) == {0: "tracked"}
    assert book.needs_full_search


def test_moving_face_is_searched_for_where_it_headed_and_where_it_was_lost() -> None:
    places = crossing(35).missing
    (led, lost_at) = ((places[i][0] + places[i][2]) / 2 for i in range(2))
    assert led == pytest.approx(100 + 8 * 35, abs=8)
    assert lost_at == pytest.approx(100 + 8 * 14)


def test_hidden_face_is_predicted_by_its_drift_and_not_by_its_last_step() -> None:
    """Half covered already, its landmarks leap by 12 px more than it does."""
    book = book_of(1)
    for frame in range(1, 61):
        book.observe(frame / RATE, [face(100 + 4 * frame)], [appearance(1)])
    book.observe(61 / RATE, [face(100 + 4 * 61 + 12)], [appearance(1)])
    speed = (4 + 12 / (RATE * DRIFT_S)) * RATE  # the leap has the weight of one frame
    led = book.live[0].place(61 / RATE + 0.5) - book.live[0].box
    np.testing.assert_allclose(led, [0.5 * speed, 0, 0.5 * speed, 0], rtol=0.01, atol=0.1)


def test_hidden_face_is_not_predicted_by_motion_before_a_pause() -> None:
    book = book_of(1)
    for frame in range(1, 31):
        book.observe(frame / RATE, [face(100 + 4 * frame)], [appearance(1)])
    later_s = 1.0 + FORESIGHT_S + 0.01
    book.observe(later_s, [face(220)], [appearance(1)])
    np.testing.assert_array_equal(book.live[0].place(later_s + 0.5), book.live[0].box)


def test_hidden_face_is_searched_for_in_every_frame_in_which_it_may_emerge() -> None:
    searched = [frame for frame in range(15, 50) if crossing(frame).needs_detection]
    way = {frame: abs(100 + 8 * frame - 300) for frame in range(15, 50)}  # how far the middles are apart
    assert {frame for frame in way if way[frame] > 0.6 * SIZE} <= set(searched)
    assert len([frame for frame in searched if way[frame] < 0.4 * SIZE]) <= 4


def test_face_emerging_where_expected_is_re_identified_though_little_of_it_shows() -> None:
    little = between(appearance(1), appearance(7), EXPECTED + 0.05)
    for x, number in ((420.0, 0), (700.0, 2)):
        back = crossing(40).admit(40 / RATE, face(x), little)
        assert back is not None
        assert back.number == number


def test_face_lost_behind_another_is_expected_there_once_that_one_has_gone() -> None:
    book = book_of(1, 2, spacing=60.0)
    book.observe(1 / RATE, [lost(book.live[0]), face(160)], [appearance(1), appearance(2)])
    book.observe(2 / RATE, [lost(track) for track in book.live], [appearance(1), appearance(2)])
    assert states(book) == {0: "coasting", 1: "coasting"}
    back = book.admit(2 / RATE, face(100), between(appearance(1), appearance(7), EXPECTED + 0.05))
    assert back is not None
    assert back.number == 0


def test_face_that_has_emerged_is_no_longer_expected_behind_another() -> None:
    """Where it is lost later, in the open, a stranger who is a little like it is a stranger."""
    book = book_of(1, 2, spacing=60.0)
    book.observe(1 / RATE, [lost(book.live[0]), face(160)], [appearance(1), appearance(2)])
    for frame, x in enumerate((100, 40, -20), start=2):  # it comes out and goes away from the other
        book.observe(frame / RATE, [face(x), face(160)], [appearance(1), appearance(2)])
    book.observe(5 / RATE, [lost(book.live[0]), face(160)], [appearance(1), appearance(2)])
    stranger = book.admit(5 / RATE, face(-20), between(appearance(1), appearance(7), EXPECTED + 0.05))
    assert stranger is not None
    assert stranger.number == 2


def test_place_of_loss_counts_again_after_a_return_from_a_cut() -> None:
    book = book_of(1)
    book.observe(0.1, [face(100)], [appearance(2)])  # a cut
    assert book.admit(0.2, face(100), appearance(1)) is not None  # and back
    book.observe(0.3, [lost(book.live[0])], [appearance(1)])
    back = book.admit(0.4, face(110), between(appearance(1), appearance(3), 0.55))
    assert back is not None
    assert back.number == 0


def test_face_half_outside_waits_for_a_new_track_id_while_somebody_is_missing() -> None:
    book = book_of(1)
    assert book.admit(0.0, face(500), hidden(appearance(2))) is not None  # nobody is missing
    book = book_of(1)
    leave(book, 3.0)
    waits = 0
    for frame in range(100):
        if book.admit(3.0 + frame / RATE, face(500), hidden(appearance(2))) is not None:
            break
        waits += 1
        book.observe(3.0 + (frame + 1) / RATE, [], [])
        assert book.needs_detection
    assert waits == pytest.approx(WAIT_S * RATE, abs=1)


def test_face_without_a_track_id_is_searched_for_only_a_limited_time() -> None:
    book = book_of(1, 2)
    for time_s in (0.4, 3.0):  # the second leaves and may still come back
        away = [lost(track) for track in book.live[1:]]
        book.observe(time_s, [face(100), *away], [appearance(1), *(appearance(8) for _ in away)])
    assert book.missing == []
    assert book.admit(3.0, face(500), hidden(appearance(3))) is None
    for frame in range(1, 60):
        time_s = 3.0 + frame / RATE
        book.observe(time_s, [face(100)], [appearance(1)])
        assert len(book.missing) == book.needs_detection == (time_s - 3.0 <= 2 * WAIT_S)


def test_missing_face_entering_at_the_edge_is_re_identified_at_once() -> None:
    book = book_of(1, 2)
    leave(book, 3.0)
    back = book.admit(3.0, face(500), hidden(appearance(2)))
    assert back is not None
    assert back.number == 1
