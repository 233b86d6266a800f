# make         a fresh machine -> .venv, the built-in game, three stages, pictures and an eval card
# make test    a fresh machine -> .venv, the whole test suite (about 13 minutes on two cores)
# make check   the tests that start no process (under a minute), for edit and rerun
# make bench   how fast stages and sampling are, for $(CONFIG) and the shape of the failed run
# make faults  what the trainer survives: the fault matrix, with 20 SIGKILLs -> faults.json
# make gpu     all that a GPU has to show, in 9 minutes -> gpu.json; NPROC=2 for two of them
# make games   do latent actions mean something in games nobody tuned for: nine games, hours
# make player  the game of hunters, a world and somebody who plays in it: pictures and a card
# make page    the world of make as one page, out/tiny/world.html, that plays without Python
# make gif     the moving picture at the top of README.md, from the world that make has trained
PYTHON ?= python3
BIN = .venv/bin
CONFIG = config/tiny.py
OUT = out/tiny
NPROC ?= 1
HUNT = config/hunt.py
HUNT_OUT = out/hunt

.DEFAULT_GOAL = all
.PHONY: all player games say_how_long test check faults bench gpu page gif clean
.DELETE_ON_ERROR:

# a stage is trained again when an earlier one is newer; remove $(OUT) to start over
all: say_how_long $(OUT)/dynamics/best.pt
	$(BIN)/python sample.py $(CONFIG)
	$(BIN)/python eval.py $(CONFIG)
	@echo "pictures: $(OUT)/samples/strip.png $(OUT)/samples/rollout.gif    card: $(OUT)/eval.md"
	@echo "play it:  $(BIN)/python play.py $(CONFIG)"

# the same for $(HUNT), and a fourth stage; two stages at a time, each on half of the cores
player: data/hunt.h5
	OMP_NUM_THREADS=$$(( ($$(getconf _NPROCESSORS_ONLN) + 1) / 2 )) $(MAKE) -j2 \
		--no-print-directory $(HUNT_OUT)/dynamics/best.pt $(HUNT_OUT)/policy/best.pt
	$(BIN)/python sample.py $(HUNT) --actions=policy
	$(BIN)/python eval.py $(HUNT)
	@echo "he plays: $(HUNT_OUT)/samples/rollout.gif    card: $(HUNT_OUT)/eval.md"
	@echo "watch:    $(BIN)/python play.py $(HUNT) --watch=True"

$(HUNT_OUT)/dynamics/best.pt: $(HUNT_OUT)/tokenizer/best.pt $(HUNT_OUT)/latent_actions/best.pt
$(HUNT_OUT)/policy/best.pt: $(HUNT_OUT)/latent_actions/best.pt

# each line with the name of its stage; the exit code is that of the stage
$(HUNT_OUT)/%/best.pt: SHELL = bash
$(HUNT_OUT)/%/best.pt: data/hunt.h5
	$(BIN)/python $*.py $(HUNT) > >(awk '{print "$* | " $$0; fflush()}')

data/hunt.h5: | .venv/installed
	$(BIN)/python data.py game $@ --player=hunter --n_frames=24000

say_how_long:
	@echo "make: about 20 minutes on two CPU cores with AVX-512; older ones, or busy ones, need more;"
	@echo "a stage that is trained already is not trained again. It leaves .venv (1.6 GB), data/tiny.*"
	@echo "(0.9 GB) and $(OUT) (0.2 GB), and nothing elsewhere; rm -rf takes them away."

$(OUT)/dynamics/best.pt: $(OUT)/tokenizer/best.pt $(OUT)/latent_actions/best.pt
	$(BIN)/python dynamics.py $(CONFIG)

$(OUT)/latent_actions/best.pt: data/tiny.h5
	$(BIN)/python latent_actions.py $(CONFIG)

$(OUT)/tokenizer/best.pt: data/tiny.h5
	$(BIN)/python tokenizer.py $(CONFIG)

data/tiny.h5: | .venv/installed
	$(BIN)/python data.py game $@

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv || \
		(echo "no venv module: apt-get install python3-venv, or set PYTHON=" && exit 1)
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.txt
	touch $@

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests -n 2 --dist loadfile

check: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests -m "not slow"

games: .venv/games
	$(BIN)/python games.py

.venv/games: requirements-games.txt .venv/installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -r $<
	touch $@

faults: .venv/installed
	$(BIN)/python -m pytest -q tests --faults_only --kills=20 --faults_json=faults.json

bench: data/tiny.h5
	$(BIN)/python bench.py $(CONFIG)
	$(BIN)/python bench.py config/failed_run.py

# no prerequisite: where there is no GPU, nothing is installed
gpu:
	@test -e .venv/installed -o -e /dev/nvidia0 || command -v nvidia-smi > /dev/null || \
		(echo "make gpu: there is no GPU here (no nvidia-smi); nothing was installed" && exit 2)
	@test -e .venv/installed || $(MAKE) --no-print-directory .venv/installed
	$(BIN)/python tests/gpu.py --nproc=$(NPROC)

page: $(OUT)/dynamics/best.pt .venv/page
	$(BIN)/python export.py $(CONFIG) $(OUT)/world.html --dtype=float16

.venv/page: requirements-page.txt .venv/installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -r $<
	touch $@

gif: $(OUT)/dynamics/best.pt
	$(BIN)/python sample.py $(CONFIG) --n_samples=2 --n_frames=45
	cp $(OUT)/samples/rollout.gif dream.gif

clean:
	rm -rf $(OUT) $(HUNT_OUT) data/tiny.* data/hunt.*
