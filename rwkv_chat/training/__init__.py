r"""How the embedded model is made, on an ordinary CPU, in about two hours. Extra: `train`.

Each stage is one command; each writes what the next one reads.

    python -m rwkv_chat.training.gather --data SETS --out work/text     public text, sha256 checked
    python -m rwkv_chat.training.write  --text work/text                the project's own dialogues
    python -m rwkv_chat.training.teach  --text work/text --minutes 30   a teacher; optional
    python -m rwkv_chat.training.pack   --text work/text --out work/packed
    python -m rwkv_chat.training.train  --packed work/packed --out work/run --minutes 120
    python -m rwkv_chat.training.export --run work/run --packed work/packed --package rwkv_chat/data
    python -m rwkv_chat.training.judge  --model rwkv_chat/data/model.safetensors --text work/text \
                                        --weights bf16 f32 q8 --out work/judged

Training needs g++ for the recurrence (`kernels/training/wkv7.cpp`), or nvcc on a GPU (`wkv7.cu`).
The schedule follows the clock; a run that is interrupted goes on when started again. A later run
can begin with the weights of this one (`pack --vocab rwkv_chat/data/vocab.txt`, then
`train --init rwkv_chat/data/model.safetensors`). On a busy machine set `OMP_WAIT_POLICY=passive
GOMP_SPINCOUNT=0`, so that threads that wait do not burn the CPU.

`text/dialogues.txt` and `text/intents.txt` decide how the model feels; read them first. The order
in the code: `gather`, `write`, `teach`, `pack` make data; `compiled`, `operator`, `model`, `loss`,
`batches`, `train` use it; `export`, `world`, `measure`, `prompts` and
`judge` look at what came out. `examples` and `tune` train a
start state for any RWKV-7 model (`rwkv-chat tune`).
"""
