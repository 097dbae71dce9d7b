"""Follow one object in a video, a folder of frames or a camera's picture, on a CPU, with edgemim's edge wing alone.

    python tracking/demo.py ARTIFACT VIDEO|FOLDER|CAMERA [--box x,y,w,h] [--key onnx-fp32] [--runtime openvino]
                            [--threads 2] [--out tracked.mp4] [--show]

Prints frame, left, top, width, height, score and 'lost' or 'ok', tab-separated; at the end, on standard error, the
milliseconds of every stage. Without --box the object is selected by mouse.
"""

import argparse
import sys
from pathlib import Path

from edgemim.edge.machine import peak_memory_mib
from edgemim.edge.tracking.boxes import Box, parse_boxes
from edgemim.edge.tracking.draw import FrameSink, draw_box
from edgemim.edge.tracking.frames import open_frames
from edgemim.edge.tracking.latency import StageTimes, Stopwatch
from edgemim.edge.tracking.tracker import Tracker
from edgemim.edge.tracking.window import check_window, select_box, show_frame
from edgemim.errors import EdgemimError


def follow(arguments: argparse.Namespace) -> None:
    """Track from the first frame to the last, or until the window is closed."""
    if arguments.show or not arguments.box:
        check_window("--show, or selecting the object by mouse,")
    tracker = Tracker.open(arguments.artifact, arguments.key, runtime=arguments.runtime, threads=arguments.threads)
    tracker.warm_up()
    times = StageTimes()
    with open_frames(arguments.source) as frames:
        sink = FrameSink(arguments.out, frames.fps) if arguments.out else None
        try:
            first = frames.first()
            box = Box.of(parse_boxes(arguments.box, "--box")[0]) if arguments.box else select_box(first)
            tracker.init(first, box)
            watch = Stopwatch()
            for image in frames:
                decode_ms = watch.lap_ms()
                found = tracker.update(image)
                times.add(decode_ms, found)
                print(frames.count, *(f"{value:.2f}" for value in found.box), f"{found.score:.3f}", sep="\t", end="\t")
                print("lost" if found.lost else "ok")
                if sink or arguments.show:
                    speed = f"{times.recent_fps():.0f} fps"
                    drawn = draw_box(image, found.box, f"{found.score:.2f}", lost=found.lost, speed=speed)
                    if sink:
                        sink.write(drawn)
                    if arguments.show and not show_frame(drawn):
                        break
                watch.lap_ms()
        finally:
            if sink:
                sink.close()
            for stage, row in times.summary().items():
                figures = "  ".join(f"{name} {value:7.2f}" for name, value in row.items())
                print(f"{stage:>10}  {figures}", file=sys.stderr)
            print(f"peak memory {peak_memory_mib():.0f} MiB", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("source")
    parser.add_argument("--box", default="", help="left,top,width,height in pixels of the first frame")
    parser.add_argument("--key", default="onnx-fp32", help="which model of the artifact")
    parser.add_argument("--runtime", choices=("onnxruntime", "openvino"))
    parser.add_argument("--threads", type=int, default=0, help="0: all usable CPUs")
    parser.add_argument("--out", type=Path, help="a video (.mp4, .avi, ...) or a folder for drawn frames")
    parser.add_argument("--show", action="store_true")
    try:
        follow(parser.parse_args())
    except EdgemimError as error:
        print(f"demo: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
